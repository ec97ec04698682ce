"""The server actor: starts the client actors, runs the rounds, streams their events and reports progress."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from raysim.core.errors import Interrupted, PlacementError, RaysimError
from raysim.core.events import ActorsPlaced, Event, Notice, Progress, RoundEvent, RunFailed, RunFinished
from raysim.core.formatting import join_names
from raysim.core.results import FailureAction
from raysim.distributed.actor_pool import ClientStarter
from raysim.distributed.control_actor import run_name
from raysim.distributed.placement_groups import ActorSlot
from raysim.distributed.prometheus import RunMetrics
from raysim.distributed.ray_fleet import RayFleet
from raysim.distributed.timeouts import NO_ACTOR_TIMEOUT_S
from raysim.federation.accounting import FleetOptions
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation

Work = Callable[[Plan, BaseFleet], Iterator[Event]]  # the events of a plan on a fleet; ends with RunFinished


@dataclass(frozen=True)
class ServerSpec:
    """The input of a server, which runs as an actor or in this process. `work` is the function that it runs.

    `actors` are the client actors, if they have been started already.
    """

    plan: list[Any]  # the reference of the Plan, in a list so that Ray does not resolve it
    costs: Mapping[str, float]  # of each site, for the first assignment to actors
    slots: Sequence[ActorSlot]
    namespace: str
    no_actor_timeout_s: float = NO_ACTOR_TIMEOUT_S
    work: Work = run_federation
    actors: Mapping[str, Any] | None = None

    def client_starter(self) -> ClientStarter:
        """Starts the client actors of this server."""
        return ClientStarter(self.plan, self.slots, self.namespace, self.costs)


def server_spec(
    plan: Plan,
    slots: Sequence[ActorSlot],
    namespace: str,
    no_actor_timeout_s: float = NO_ACTOR_TIMEOUT_S,
    work: Work = run_federation,
) -> ServerSpec:
    """The input of a server that runs `plan` with a client actor in each slot. Puts `plan` into the object store."""
    sizes = plan.task.sizes
    costs = {site: 1.0 + sizes[site].get("train", 0) for site in plan.sites}
    return ServerSpec([ray.put(plan)], costs, slots, namespace, no_actor_timeout_s, work)


class ServerActor:
    """Runs the server side of a run, with its client actors. It is an actor, or an object in a trial's process."""

    def __init__(self, spec: ServerSpec) -> None:
        self.starter = spec.client_starter()
        self.pool = self.starter.make_pool(self.starter.start_all() if spec.actors is None else spec.actors)
        self._open(spec)

    def _open(self, spec: ServerSpec) -> None:
        self.spec, self.plan = spec, ray.get(spec.plan[0])
        plan: Plan = self.plan
        config = plan.config
        options = FleetOptions(
            config.seed,
            config.rounds,
            config.min_replies,
            config.site_timeout_s,
            batch_sites=plan.batch_sites,
            single_sites=tuple(config.resources.sites),
        )
        self.fleet = RayFleet(
            plan.task, self.pool, options, chaos=plan.faults, no_actor_timeout_s=spec.no_actor_timeout_s
        )
        self.metrics = RunMetrics(run_name(spec.namespace), plan.config.rounds, plan.metric)

    def renew(self, spec: ServerSpec) -> None:
        """Run the plan of `spec` from now on, with the same client actors. Raises RayError if one of them is lost."""
        self.pool.renew(spec.plan, spec.costs)
        self.starter.plan = spec.plan
        self._open(spec)

    def __repr__(self) -> str:
        return "server"

    def wait_for_actors(self) -> ActorsPlaced | RunFailed:
        """The placements of the client actors with allocated slots, when they are up; RunFailed if one cannot start.

        The other actors start when their nodes have joined, in the same way as replacements.
        """
        fleet, pool = self.fleet, self.pool
        try:
            dropped = pool.wait_until_started(fleet.progress, self.spec.costs, self.starter.is_allocated)
        except RaysimError as error:
            return RunFailed(error)
        for actor, cause in dropped.items():
            fleet.record_dropped(actor, cause)
        if self.plan.faults.needs_node and not pool.has_late_actors and not fleet.fault_killer.killable_nodes():
            return RunFailed(PlacementError("chaos: kill node needs a client actor on a node other than the command's"))
        return self._placed()

    def _placed(self) -> ActorsPlaced:
        return ActorsPlaced(self.pool.placements(), dict(self.pool.site_to_actor))

    def run(self) -> Generator[Event]:
        """The events of the run; the last one is RunFinished or RunFailed.

        ActorsPlaced follows a round in which actors were lost or have started, and the next round, in which the new
        actors get sites.
        """
        changes, repeat = 0, False
        try:
            for event in self.spec.work(self.plan, self.fleet):
                if isinstance(event, RunFinished):
                    yield from self._final_reports(changed=changes > 0)
                yield self._count(event)
                if repeat or changes != self.pool.changes:
                    repeat, changes = changes != self.pool.changes, self.pool.changes
                    yield self._placed()
        except RaysimError as error:
            if not isinstance(error, Interrupted):
                self.metrics.count_failures([FailureAction.RUN_ENDED])
            yield RunFailed(error)
        self.metrics.flush()

    def _final_reports(self, changed: bool) -> Iterator[Event]:
        """The planned kills that did not happen, and the final placements if they changed or actors never started."""
        if remaining := self.fleet.fault_killer.remaining():
            names = join_names(remaining)
            yield Notice(f"chaos: not killed, because the run ended before there was one to kill: {names}")
        if changed or self.pool.has_late_actors:
            yield self._placed()

    def _count(self, event: Event) -> Event:
        """Add the event to the metrics; returned without the Round, which stays in this process."""
        if isinstance(event, Notice) and event.action is not None:
            self.metrics.count_failures([event.action])
        if isinstance(event, RoundEvent) and event.round is not None:
            self.metrics.add_round(event.round, event.values)
            self._set_progress()  # the progress of short rounds is never requested
            return replace(event, round=None)
        return event

    def _set_progress(self) -> None:
        progress = self.fleet.progress
        self.metrics.set_progress(progress.done, progress.total)

    @ray.method(concurrency_group="status")
    def progress(self) -> Progress:
        """The progress of the current round."""
        self._set_progress()
        return self.fleet.progress

    @ray.method(concurrency_group="status")
    def stop(self) -> None:
        """End the run at the next reply of a site."""
        self.fleet.stop_requested.set()
