"""The fleet on Ray: client actors play the sites, and another takes the place of one that is lost."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.contracts import Task
from raysim.core.errors import LostObjectError, NodeError, RaysimError, ResumableError
from raysim.core.events import ActorPlacement
from raysim.core.fault_injection import FaultPlan
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.dispatcher import MAX_LOSSES, Dispatcher
from raysim.distributed.load_balancing import assign, rebalance
from raysim.distributed.ray_errors import storage_full_error, summarize
from raysim.federation.fleet import BaseFleet
from raysim.federation.site_executor import CallKey, CallResult, Client

P = TypeVar("P")
STRIKE = 60.0  # seconds for chaos to start a process where it strikes
PATIENCE = 120.0  # seconds for an actor to come back, while no other can work, to a cluster that has room for it


class RayFleet(BaseFleet):
    """Sites on client actors. A site stays with the actor that has its data open, unless another is idle.

    `start` makes a client actor of a name; it is called for one that was lost. `dedicated_actors` are the actors that play a
    single site, by site: nobody else plays it, and they play nothing else. `patience` is how many seconds a round
    waits for an actor when none can work.
    """

    def __init__(
        self,
        task: Task,
        actors: Mapping[str, Any],
        site_to_actor: Mapping[str, str],
        start: Callable[[str], Any],
        *,
        seed: int,
        rounds: int,
        chaos: FaultPlan | None = None,
        dedicated_actors: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.dedicated_actors, self.patience = dict(dedicated_actors or {}), patience
        self.kills = dict(chaos.kills) if chaos else {}
        self.actors, self.site_to_actor, self.start = dict(actors), dict(site_to_actor), start
        self.starting: dict[Any, str] = {}  # actors that are not up yet, by what tells that they are
        self.failed: dict[str, int] = {}  # times in a row that an actor has not come up
        self.places: dict[str, ActorPlacement] = {}
        self.late: set[str] = set()  # actors that have not been up yet, for their nodes are still to come

    def up(self) -> list[str]:
        """The actors that can be given work."""
        down = set(self.starting.values())
        return [actor for actor in self.actors if actor not in down]

    def wait_for(self, later: Mapping[Any, str], costs: Mapping[str, float]) -> None:
        """Go on without these actors, by what tells that they are up, until they are."""
        self.starting.update(later)
        self.late = set(later.values())
        there = [actor for actor in self.actors if actor not in self.late or actor in self.dedicated_actors.values()]
        if set(there) - set(self.dedicated_actors.values()):
            self.site_to_actor = assign(costs, there, self.dedicated_actors)

    def replace(self, actor: str) -> None:
        """Start `actor` anew; it is given no work until it is up, for there may be no room for it any more."""
        self.places.pop(actor, None)
        self.ledger.moved += 1
        ray.kill(self.actors[actor])
        self.actors[actor] = self.start(actor)
        self.starting[self.actors[actor].place.remote()] = actor

    def started(self, ref: Any) -> None:
        """An actor that `ref` tells of is up, or was lost again before it was."""
        actor = self.starting.pop(ref)
        try:
            self.places[actor] = ray.get(ref)
            self.late.discard(actor)
            self.ledger.moved += 1
            self.failed.pop(actor, None)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, RaysimError):
                self.leave(actor, error.cause)
                return
            self.failed[actor] = self.failed.get(actor, 0) + 1
            if self.failed[actor] == MAX_LOSSES:
                failure = ResumableError(
                    f"{actor} was lost and cannot be started anew: {summarize(error)}. When that is mended, `raysim resume` "
                    "goes on from the last checkpoint"
                )
                failure.remote = str(error)
                raise failure from error
            self.replace(actor)

    def leave(self, actor: str, error: RaysimError) -> None:
        """Go on without an actor whose node cannot serve it. Raises the error if its sites have no other."""
        dedicated_actors = set(self.dedicated_actors.values())
        others = sorted(self.actors.keys() - dedicated_actors - {actor}, key=lambda name: (name in self.late, name))
        if not isinstance(error, NodeError) or actor in dedicated_actors or not others:
            raise error
        del self.actors[actor]  # its place stays this run's, so that nothing else is put there
        self.late.discard(actor)
        self.ledger.moved += 1
        self.site_to_actor.update({site: others[0] for site, name in self.site_to_actor.items() if name == actor})
        number, phase = self.ledger.round + 1, self.ledger.progress.phase
        self.ledger.failures.append(FailureEvent(number, phase, (), actor, str(error), FailureAction.ACTOR_DROPPED))

    def _run_calls(
        self, client: Client[P], broadcast: Any, per_site: Mapping[str, Any] | None, call: CallKey, private: bool
    ) -> Iterator[tuple[str, CallResult[P]]]:
        order = put((client, broadcast, call, private))
        for site, answer in Dispatcher(self, order, per_site).results():
            self._make_trouble(call.round + 1)
            yield site, answer

    def _make_trouble(self, number: int) -> None:
        """Kill what chaos asks for in this round; what is not up yet, in the next."""
        struck: list[ActorPlacement] = []
        for victim in self.kills.pop(number, ()):
            place = self._kill(victim, struck)
            if place is None:
                self.kills[number + 1] = (*self.kills.get(number + 1, ()), victim)
            else:
                struck.append(place)

    def others(self) -> list[ActorPlacement]:
        """The actors on other nodes than this process's and the head's, with which the cluster would go."""
        heads = {node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
        spared = {ray.get_runtime_context().get_node_id(), *heads}
        up = (self.places[actor] for actor in self.up() if actor in self.places)
        return [place for place in up if place.node not in spared]

    def _kill(self, victim: str, struck: Sequence[ActorPlacement]) -> ActorPlacement | None:
        """Really kill the last client actor, or the last node that has one and not the server.

        Not where something was `struck` just now. None if there is none to kill.
        """
        if victim == "node":
            nodes = {place.node for place in struck}
            places = [place for place in self.others() if place.node not in nodes]
        else:
            places = [self.places[actor] for actor in self.up() if self.places.get(actor) not in (None, *struck)]
        if not places:
            return None
        if victim == "client" and places[-1].node == ray.get_runtime_context().get_node_id():
            os.kill(places[-1].pid, signal.SIGKILL)
            return places[-1]
        there = NodeAffinitySchedulingStrategy(places[-1].node, soft=False)
        remote: Any = ray.remote(_strike)
        pid = 0 if victim == "node" else places[-1].pid
        blow = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
        with suppress(RayError):  # the death of its own node: it has struck
            ray.get(blow, timeout=STRIKE)
        return places[-1]

    def queues(self) -> dict[str, deque[str]]:
        """The sites that each actor is to play, the costliest first."""
        waiting: dict[str, deque[str]] = {actor: deque() for actor in self.actors}
        costs = self._costs()
        broadcast = [actor for actor in self.actors if actor not in self.late]
        if all(self.site_to_actor[site] in broadcast for site in self.sites if site not in self.dedicated_actors):
            self.site_to_actor.update(rebalance(self.site_to_actor, costs, broadcast, self.dedicated_actors))
        for site in sorted(self.sites, key=costs.__getitem__, reverse=True):
            waiting[self.site_to_actor[site]].append(site)
        return waiting

    def _costs(self) -> dict[str, float]:
        """Seconds of each site's last call; where it has had none, by its training examples beside the others'."""
        seconds = self.ledger.seconds
        size = {site: 1.0 + self.task.sizes[site].get("train", 0) for site in self.sites}
        timed = [site for site in self.sites if site in seconds]
        rate = sum(seconds[site] for site in timed) / sum(size[site] for site in timed) if timed else 1.0
        return {site: seconds.get(site, size[site] * rate) for site in self.sites}

    @staticmethod
    def _fetch(held: Any) -> Any:
        return get(held).payload if isinstance(held, ray.ObjectRef) else held

    def client_state(self, site: str) -> Any:
        return get(self.ledger.client_states.get(site))

    def restore_client_states(self, client_states: Mapping[str, Any]) -> None:
        self.ledger.client_states.update({site: put(client_state) for site, client_state in client_states.items()})


def _strike(pid: int) -> None:
    os.kill(pid or int(os.environ["RAY_RAYLET_PID"]), signal.SIGKILL)


def put(value: Any) -> Any:
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise storage_full_error(error) from error


def get(held: Any) -> Any:
    try:
        return ray.get(held) if isinstance(held, ray.ObjectRef) else held
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise storage_full_error(error) from error
    except ObjectLostError as error:
        raise LostObjectError(f"an object was lost with its node: {str(error).splitlines()[0]}") from error
