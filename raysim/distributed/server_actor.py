"""The server actor: starts the client actors, runs the rounds, streams them, and answers meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysim.core.errors import Interrupted, PlacementError, RaysimError, RunError
from raysim.core.events import ActorsPlaced, Event, Notice, Progress, RoundEvent, RunFailed, RunFinished
from raysim.core.formatting import join_names
from raysim.core.results import FailureAction
from raysim.distributed.client_actor import ClientActor
from raysim.distributed.control_actor import run_name
from raysim.distributed.load_balancing import assign
from raysim.distributed.prometheus import RunMetrics
from raysim.distributed.ray_fleet import PATIENCE, RayFleet
from raysim.distributed.resources import ActorResources
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation


def scheduling_strategies(groups: Sequence[PlacementGroup]) -> list[PlacementGroupSchedulingStrategy]:
    """The places of these groups, one for each client actor."""
    return [PlacementGroupSchedulingStrategy(group, i) for group in groups for i in range(group.bundle_count)]


def is_group_ready(group: PlacementGroup) -> bool:
    """Whether the group has its place. Asked to wait for 0 s, Ray at times denies it of one that has."""
    return bool(placement_group_table(group)["state"] == "CREATED")


class ServerActor:
    """The server actor: starts the client actors, runs the rounds, streams them, and answers meanwhile.

    `scheduling_strategies` are where the actors go, one for each that is `given`. `patience` is that of the fleet.
    """

    def __init__(
        self,
        plan: list[Any],
        rooms: Sequence[PlacementGroupSchedulingStrategy],
        costs: Mapping[str, float],
        given: Sequence[ActorResources],
        namespace: str,
        patience: float = PATIENCE,
    ) -> None:
        names = [f"client-{i:02}" for i in range(1, len(given) + 1)]
        seats = dict(zip(names, given, strict=True))
        self.dedicated_actors = {seat.site: name for name, seat in seats.items() if seat.site is not None}
        self.held, site_to_actor = plan, assign(costs, names, self.dedicated_actors)
        self.costs, self.patience, self.rooms = costs, patience, dict(zip(names, rooms, strict=True))

        def start(name: str) -> Any:
            return _start_client(
                name, _actor_title(name, site_to_actor), namespace, self.held, self.rooms[name], seats[name]
            )

        # Before the plan is opened, which imports much: so the clients start while this process does.
        clients = {name: start(name) for name in names}
        self.plan: Plan = ray.get(plan[0])
        self.fleet, self.name = self._fleet(clients, site_to_actor, start), run_name(namespace)
        self._watch()

    def _fleet(
        self, clients: Mapping[str, Any], site_to_actor: Mapping[str, str], start: Callable[[str], Any]
    ) -> RayFleet:
        plan = self.plan
        run: dict[str, Any] = {"seed": plan.config.seed, "rounds": plan.config.rounds, "chaos": plan.faults}
        run["patience"] = self.patience
        return RayFleet(plan.task, clients, site_to_actor, start, dedicated_actors=self.dedicated_actors, **run)

    def renew(self, plan: list[Any], costs: Mapping[str, float]) -> None:
        """Go on to another run, with the client actors that are up. Raises RayError if one of them is lost."""
        old = self.fleet
        ray.get([actor.renew.remote(plan) for actor in old.actors.values()])
        self.held, self.plan = plan, ray.get(plan[0])
        self.fleet = self._fleet(old.actors, assign(costs, list(old.actors), self.dedicated_actors), old.start)
        self.fleet.places.update(old.places)
        self._watch()

    def _watch(self) -> None:
        self.last = dict[str, Any]()
        self.monitor = RunMetrics(self.name, self.plan.config.rounds, self.plan.metric)

    def __repr__(self) -> str:
        return "server"

    def placed(self) -> ActorsPlaced | RunFailed:
        """Where everything is, once all client actors are up that have room, or which of them cannot start.

        The others join when their nodes are there, as one does that was lost.
        """
        places, progress = self.fleet.places, self.fleet.ledger.progress
        coming = {client.place.remote(): name for name, client in self.fleet.actors.items()}
        later = {ref: name for ref, name in coming.items() if not is_group_ready(self.rooms[name].placement_group)}
        for ref in later:
            del coming[ref]
        progress.phase, progress.total = "starting actors", len(coming)
        while coming:
            ready, _ = ray.wait(list(coming), timeout=PATIENCE)
            if not ready:
                late = join_names(sorted(coming.values()))
                return RunFailed(RunError(f"no client actor has started for {PATIENCE:g} s; waiting for {late}"))
            name = coming.pop(ready[0])
            try:
                places[name] = ray.get(ready[0])
            except RayError as error:
                if failed := self._without(name, error):
                    return failed
            progress.done += 1
        if later:
            self.fleet.wait_for(later, self.costs)
        if self.plan.faults.needs_node and not later and not self.fleet.others():
            return RunFailed(PlacementError("chaos: kill node needs a client actor on a node other than the command's"))
        return self._placed()

    def _without(self, name: str, error: RayError) -> RunFailed | None:
        """Go on without an actor that has not started, if its node is at fault and others can play."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, RaysimError):
            try:
                self.fleet.leave(name, error.cause)
            except RaysimError as cause:
                return RunFailed(cause)
            return None
        failure = RunError(f"{name} has not started: {type(error).__name__}; what it said stands above")
        failure.remote = str(error)
        return RunFailed(failure)

    def _placed(self) -> ActorsPlaced:
        places = self.fleet.places
        return ActorsPlaced(
            [places[name] for name in self.fleet.actors if name in places], dict(self.fleet.site_to_actor)
        )

    def run(self) -> Generator[Event]:
        """A Row per round, a Placed after one in which an actor was lost or has come; then Summary or Failed."""
        moved, again = 0, False  # told once more in the round after, in which who is new is given sites
        try:
            for event in run_federation(self.plan, self.fleet):
                if isinstance(event, RunFinished) and self.fleet.kills:
                    left = join_names([victim for victims in self.fleet.kills.values() for victim in victims])
                    yield Notice(f"chaos: not killed, for the run ended before there was one to kill: {left}")
                if isinstance(event, RunFinished) and (
                    moved or self.fleet.late
                ):  # who came late has sites, or never came
                    yield self._placed()
                yield self._counted(event)
                if again or moved != self.fleet.ledger.moved:
                    again, moved = moved != self.fleet.ledger.moved, self.fleet.ledger.moved
                    yield self._placed()
        except RaysimError as error:
            if not isinstance(error, Interrupted):
                self.monitor.failed([FailureAction.RUN_ENDED])
            yield RunFailed(error)
        self.monitor.flush()

    def _counted(self, event: Event) -> Event:
        """The event as it travels, once it is in the metrics."""
        if isinstance(event, Notice) and event.action is not None:
            self.monitor.failed([event.action])
        if isinstance(event, RoundEvent) and event.round is not None:
            self.monitor.add(event.round, event.values)
            self._tell()  # of short rounds nobody asks
            self.last, event = dict(event.values), replace(event, round=None)
        return event

    @ray.method(concurrency_group="status")
    def progress(self) -> Progress:
        """Where the present round stands."""
        self._tell()
        return self.fleet.ledger.progress

    def _tell(self) -> None:
        self.monitor.at(self.fleet.ledger.progress.done, self.fleet.ledger.progress.total)

    @ray.method(concurrency_group="status")
    def status(self) -> dict[str, Any]:
        """What `raysim status` shows of the run."""
        plan, progress = self.plan, self.fleet.ledger.progress
        return {
            "run": self.name,
            "what": plan.title,
            "folder": str(plan.directory),
            "host": socket.gethostname(),
            "done": self.last.get("round", 0),
            "of": plan.config.rounds,
            "at": f"{progress.phase}, {progress.done} of {progress.total}",
            "metric": plan.metric,
            "value": self.last.get(f"{plan.metric}/mean"),
            "seconds": self.last.get("seconds"),
        }

    @ray.method(concurrency_group="status")
    def stop(self) -> None:
        """End the run at the next reply of a site."""
        self.fleet.ledger.stop.set()


def _actor_title(name: str, site_to_actor: Mapping[str, str]) -> str:
    """The name on the dashboard: the actor and the sites it plays, the first of them if there are many."""
    sites = sorted(site for site, actor in site_to_actor.items() if actor == name)
    more = f",+{len(sites) - 4}" if len(sites) > 4 else ""
    return f"{name}[{','.join(sites[:4])}{more}]"


def _start_client(
    name: str, title: str, namespace: str, plan: list[Any], room: PlacementGroupSchedulingStrategy, seat: ActorResources
) -> Any:
    options = {
        "name": f"{run_name(namespace)}/{title}",
        "namespace": namespace,
        "num_cpus": seat.cpus,
        "num_gpus": seat.gpus,
        "scheduling_strategy": room,
    }
    actor: Any = ray.remote(ClientActor)
    for wait in (0.1, 1.0, 10.0):
        with suppress(ValueError):  # Ray has not yet noticed that the one of this name is gone
            return actor.options(**options).remote(name, title, plan, seat.cpus, seat.gpus)
        time.sleep(wait)
    return actor.options(**options).remote(name, title, plan, seat.cpus, seat.gpus)
