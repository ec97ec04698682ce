"""The pool of client actors: their placement and availability, and the replacement of lost actors."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raysim.core.errors import NodeError, RaysimError, ResumableError, RunError
from raysim.core.events import ActorPlacement, Progress
from raysim.core.formatting import join_names
from raysim.distributed.client_actor import ClientActor
from raysim.distributed.control_actor import run_name
from raysim.distributed.load_balancing import assign, rebalance
from raysim.distributed.placement_groups import ActorSlot
from raysim.distributed.ray_errors import summarize
from raysim.distributed.timeouts import ACTOR_START_TIMEOUT_S

MAX_START_FAILURES = 3  # consecutive failures of one actor
MAX_TITLE_SITES = 4
NAME_RETRIES_S = (0.1, 1.0, 10.0)  # Ray releases the name of a lost actor after a while


Queue = TypeVar("Queue")


class ActorPool:
    """Client actors by name, and the actor of each site.

    `start` starts the client actor of a name, and is called again if the actor is lost. `dedicated_actors` maps a site
    to its dedicated actor, which runs no other site.
    """

    def __init__(
        self,
        actors: Mapping[str, Any],
        site_to_actor: Mapping[str, str],
        start: Callable[[str], Any],
        dedicated_actors: Mapping[str, str] | None = None,
    ) -> None:
        self.site_to_actor, self.dedicated_actors = dict(site_to_actor), dict(dedicated_actors or {})
        self.changes = 0  # number of times that an actor was lost, was dropped or has started
        self._actors, self._start = dict(actors), start
        self._starting: dict[Any, str] = {}  # by the reference that becomes ready when the actor is up
        self._start_failures: Counter[str] = Counter()  # consecutive failures, by actor
        self._placements: dict[str, ActorPlacement] = {}
        self._late: set[str] = set()  # have never been up, because their nodes have not joined yet

    @property
    def names(self) -> list[str]:
        """All actors, available or not."""
        return list(self._actors)

    @property
    def has_late_actors(self) -> bool:
        """Whether some actors have never been up."""
        return bool(self._late)

    @property
    def pending_starts(self) -> Collection[Any]:
        """A reference for each actor that is starting. When it is ready, pass it to `finish_start`."""
        return self._starting.keys()

    def available_actors(self) -> list[str]:
        """The actors that are up and can get calls."""
        starting = set(self._starting.values())
        return [actor for actor in self._actors if actor not in starting]

    def handle(self, actor: str) -> Any:
        """Ray's handle of the actor."""
        return self._actors[actor]

    def placements(self, available: bool = False) -> list[ActorPlacement]:
        """The placements of all actors that have been placed, or only of the available ones."""
        names = self.available_actors() if available else self._actors
        return [self._placements[name] for name in names if name in self._placements]

    def wait_until_started(
        self, progress: Progress, costs: Mapping[str, float], is_allocated: Callable[[str], bool]
    ) -> dict[str, RaysimError]:
        """Wait for the actors whose slots are allocated; the others start later. Returns the causes of dropped actors.

        Raises RunError if an actor does not start, and the cause if an actor cannot be dropped.
        """
        starts = {handle.place.remote(): name for name, handle in self._actors.items()}
        late = {ref: name for ref, name in starts.items() if not is_allocated(name)}
        for ref in late:
            del starts[ref]
        progress.phase, progress.total = "starting client actors", len(starts)
        dropped = dict[str, RaysimError]()
        while starts:
            ready, _ = ray.wait(list(starts), timeout=ACTOR_START_TIMEOUT_S)
            if not ready:
                names = join_names(sorted(starts.values()))
                raise RunError(f"no client actor has started for {ACTOR_START_TIMEOUT_S:g} s; waiting for {names}")
            name = starts.pop(ready[0])
            try:
                self._placements[name] = ray.get(ready[0])
            except RayError as error:
                cause = _refusal(error)
                if cause is None:
                    raise _not_started(name, error) from error
                self.drop(name, cause)
                dropped[name] = cause
            progress.done += 1
        if late:
            self.add_late(late, costs)
        return dropped

    def add_late(self, late: Mapping[Any, str], costs: Mapping[str, float]) -> None:
        """Continue without the `late` actors until they are up, which their references report."""
        self._starting.update(late)
        self._late = set(late.values())
        dedicated = set(self.dedicated_actors.values())
        present = [actor for actor in self._actors if actor not in self._late or actor in dedicated]
        if set(present) - dedicated:
            self.site_to_actor = assign(costs, present, self.dedicated_actors)

    def replace(self, actor: str) -> None:
        """Kill `actor` and start it again. It gets no calls until it is up: the cluster may lack resources for it."""
        self._placements.pop(actor, None)
        self.changes += 1
        ray.kill(self._actors[actor])
        self._actors[actor] = self._start(actor)
        self._starting[self._actors[actor].place.remote()] = actor

    def finish_start(self, ref: Any) -> tuple[str, RaysimError] | None:
        """Make the actor of this ready reference available, or start it again if it was lost meanwhile.

        Returns an actor that was dropped, with the cause. Raises ResumableError if it cannot be started.
        """
        actor = self._starting.pop(ref)
        try:
            self._placements[actor] = ray.get(ref)
        except RayError as error:
            cause = _refusal(error)
            if cause is not None:
                self.drop(actor, cause)
                return actor, cause
            self._start_failures[actor] += 1
            if self._start_failures[actor] == MAX_START_FAILURES:
                raise _cannot_restart(actor, error) from error
            self.replace(actor)
            return None
        self._late.discard(actor)
        self.changes += 1
        self._start_failures.pop(actor, None)
        return None

    def drop(self, actor: str, cause: RaysimError) -> None:
        """Continue without an actor whose node is unfit for the run. Raises `cause` if no other can run its sites."""
        dedicated = set(self.dedicated_actors.values())
        others = sorted(self._actors.keys() - dedicated - {actor}, key=lambda name: (name in self._late, name))
        if not isinstance(cause, NodeError) or actor in dedicated or not others:
            raise cause
        del self._actors[actor]  # its slot stays reserved, so that nothing else is placed on that node
        self._late.discard(actor)
        self.changes += 1
        self.move_sites([site for site, name in self.site_to_actor.items() if name == actor], others[0])

    def move_sites(self, sites: Sequence[str], actor: str) -> None:
        """Assign these sites to `actor`, which keeps their data open."""
        self.site_to_actor.update(dict.fromkeys(sites, actor))

    def site_queues(self, sites: Sequence[str], costs: Mapping[str, float]) -> dict[str, deque[str]]:
        """The sites of each actor, the costliest (in seconds) first, after a rebalance."""
        queues: dict[str, deque[str]] = {actor: deque() for actor in self._actors}
        present = [actor for actor in self._actors if actor not in self._late]
        if all(self.site_to_actor[site] in present for site in sites if site not in self.dedicated_actors):
            self.site_to_actor.update(rebalance(self.site_to_actor, costs, present, self.dedicated_actors))
        for site in sorted(sites, key=costs.__getitem__, reverse=True):
            queues[self.site_to_actor[site]].append(site)
        return queues

    def open_queues(self, queues: Mapping[str, Queue]) -> dict[str, Mapping[str, Queue]]:
        """For each actor, the queues that it may take sites from: its queue if it is dedicated, else all shared."""
        dedicated = set(self.dedicated_actors.values())
        shared = {actor: queue for actor, queue in queues.items() if actor not in dedicated}
        return {actor: {actor: queues[actor]} if actor in dedicated else shared for actor in queues}

    def renew(self, plan: list[Any], costs: Mapping[str, float]) -> None:
        """Use the actors for another run. Raises RayError if one of them is lost."""
        ray.get([handle.renew.remote(plan) for handle in self._actors.values()])
        self.site_to_actor = assign(costs, list(self._actors), self.dedicated_actors)
        self._starting.clear()
        self._start_failures.clear()
        self._late.clear()
        self.changes = 0

    def close(self) -> None:
        """Kill all actors."""
        for handle in self._actors.values():
            ray.kill(handle)


class ClientStarter:
    """Starts the client actors of a run, each in its slot. `costs` are those of the sites that they run."""

    def __init__(self, plan: list[Any], slots: Sequence[ActorSlot], namespace: str, costs: Mapping[str, float]) -> None:
        self.plan, self.namespace = plan, namespace
        self.slots = {f"client-{number:02}": slot for number, slot in enumerate(slots, start=1)}
        places = {name: slot.resources.site for name, slot in self.slots.items()}
        self._dedicated = {site: name for name, site in places.items() if site is not None}
        self._site_to_actor = assign(costs, list(self.slots), self._dedicated)
        self._titles = {name: _title(name, self._site_to_actor) for name in self.slots}

    def start_all(self) -> dict[str, Any]:
        """Ray's handles of all actors by name; does not wait until they are up."""
        return {name: self.start(name) for name in self.slots}

    def make_pool(self, actors: Mapping[str, Any]) -> ActorPool:
        """The pool of the actors that `start_all` has started, here or in another process."""
        return ActorPool(actors, self._site_to_actor, self.start, self._dedicated)

    def start(self, name: str) -> Any:
        """Start the client actor of this name; does not wait until it is up."""
        resources, title = self.slots[name].resources, self._titles[name]
        options = {
            "name": f"{run_name(self.namespace)}/{title}",
            "namespace": self.namespace,
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "scheduling_strategy": self.slots[name].strategy,
        }
        remote: Any = ray.remote(ClientActor)
        arguments = (name, title, self.plan, resources.cpus, resources.gpus)
        for pause in NAME_RETRIES_S:
            with suppress(ValueError):  # the name of a lost actor is not released yet
                return remote.options(**options).remote(*arguments)
            time.sleep(pause)
        return remote.options(**options).remote(*arguments)

    def is_allocated(self, name: str) -> bool:
        """Whether the slot of this actor is allocated."""
        return self.slots[name].is_allocated()


def _title(name: str, site_to_actor: Mapping[str, str]) -> str:
    """The name on the dashboard: the actor and its sites, the first of them if there are many."""
    sites = sorted(site for site, actor in site_to_actor.items() if actor == name)
    more = f",+{len(sites) - MAX_TITLE_SITES}" if len(sites) > MAX_TITLE_SITES else ""
    return f"{name}[{','.join(sites[:MAX_TITLE_SITES])}{more}]"


def _refusal(error: RayError) -> RaysimError | None:
    """The error of raysim that an actor raised at its start; None if the actor was lost."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, RaysimError) else None


def _not_started(name: str, error: RayError) -> RunError:
    failure = RunError(f"{name} has not started: {type(error).__name__}; its output is above")
    failure.remote = str(error)
    return failure


def _cannot_restart(actor: str, error: RayError) -> ResumableError:
    failure = ResumableError(
        f"{actor} was lost and cannot be restarted: {summarize(error)}. Fix the cause; then `raysim resume` continues "
        "from the last checkpoint"
    )
    failure.remote = str(error)
    return failure
