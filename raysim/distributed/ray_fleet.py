"""The fleet on Ray: runs client functions at sites with the client actors of a pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError

from raysim.core.contracts import Task
from raysim.core.errors import LostObjectError, RaysimError
from raysim.core.fault_injection import FaultPlan
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.actor_pool import ActorPool
from raysim.distributed.dispatcher import Dispatcher, Group
from raysim.distributed.fault_killer import FaultKiller
from raysim.distributed.ray_errors import storage_full_error
from raysim.distributed.timeouts import NO_ACTOR_TIMEOUT_S
from raysim.federation.accounting import ClientStateStore, FleetOptions
from raysim.federation.fleet import BaseFleet
from raysim.federation.site_executor import CallKey, CallResult, Client

P = TypeVar("P")


class RayFleet(BaseFleet):
    """Runs sites on the client actors of `pool`.

    A site stays on the actor that has its data open, unless another actor is idle.
    If no actor is available, a round waits for at most `no_actor_timeout_s`.
    """

    def __init__(
        self,
        task: Task,
        pool: ActorPool,
        options: FleetOptions,
        *,
        chaos: FaultPlan | None = None,
        no_actor_timeout_s: float = NO_ACTOR_TIMEOUT_S,
    ) -> None:
        super().__init__(task, options, ClientStateStore(_put, _get))
        self.pool, self.no_actor_timeout_s = pool, no_actor_timeout_s
        self.fault_killer = FaultKiller(chaos or FaultPlan(), pool)

    def record_dropped(self, actor: str, cause: RaysimError) -> None:
        """Record that the run continues without this actor."""
        number, phase = self.accounting.number, self.progress.phase
        event = FailureEvent(number, phase, (), actor, str(cause), FailureAction.ACTOR_DROPPED)
        self.accounting.failures.append(event)

    def _run_calls(
        self, client: Client[P], broadcast: Any, per_site: Mapping[str, Any] | None, call: CallKey, private: bool
    ) -> Iterator[tuple[str, CallResult[P]]]:
        request = _put((client, broadcast, call, private))
        for site, result in Dispatcher(self, request, per_site, self.groups(call)).results():
            self.fault_killer.kill_due(call.round + 1)
            yield site, result

    def group_queues(self, groups: Sequence[Group]) -> dict[str, deque[Group]]:
        """The groups of sites of each actor in this call, the costliest first; a group goes where its first site is."""
        costs, group_of = self._costs(), {group[0]: group for group in groups}
        seconds = {first: sum(costs[site] for site in group) for first, group in group_of.items()}
        queues = self.pool.site_queues([*group_of], seconds)
        return {actor: deque(group_of[first] for first in queue) for actor, queue in queues.items()}

    def _costs(self) -> dict[str, float]:
        """Seconds of each site's last call; of a site without one, estimated by its number of training examples."""
        seconds = self.call_seconds
        size = {site: 1.0 + self.task.sizes[site].get("train", 0) for site in self.sites}
        timed = [site for site in self.sites if site in seconds]
        rate = sum(seconds[site] for site in timed) / sum(size[site] for site in timed) if timed else 1.0
        return {site: seconds.get(site, size[site] * rate) for site in self.sites}

    @staticmethod
    def _fetch(held: Any) -> Any:
        return _get(held).payload if isinstance(held, ray.ObjectRef) else held


def _put(value: Any) -> Any:
    """The reference of `value` in the object store. Raises RunError, with the cure, if it is full."""
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise storage_full_error(error) from error


def _get(value: Any) -> Any:
    """The object of a reference, or the value itself. Raises LostObjectError if the object was lost with its node."""
    try:
        return ray.get(value) if isinstance(value, ray.ObjectRef) else value
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise storage_full_error(error) from error
    except ObjectLostError as error:
        raise LostObjectError(f"an object was lost with its node: {str(error).splitlines()[0]}") from error
