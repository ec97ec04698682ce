"""Ray's side of a run: joins or starts Ray, places the actors, and lets the server actor run the rounds."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from raysim.balance import assign
from raysim.client import ClientActor, Place
from raysim.config import Resources
from raysim.data.wording import listed
from raysim.dispatch import told
from raysim.errors import PlacementError, RaysimError, RunError
from raysim.fleet import Progress
from raysim.log import note
from raysim.placement import Seat, nodes, seats
from raysim.preflight import check_store
from raysim.ray_fleet import RayFleet
from raysim.run import Note, Plan, Row, Summary, perform
from raysim.types import Incident

PATIENCE = 120.0  # seconds for actors to start on a cluster that has room for them
KNOCK = 10.0  # seconds for the head of a cluster to answer
QUIET = 60.0  # seconds without an answer of any site after which a note says whom the round waits for
TICK = 0.5  # seconds between two looks at the progress of a round


@dataclass(frozen=True)
class Placed:
    """The actors are up: where each is, and the site's actor by site."""

    places: Sequence[Place]
    home: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """The run failed. It travels as data, so that whoever reads it needs no class but raysim's."""

    error: RaysimError


Event = Placed | Row | Note | Summary | Failed | Progress


class Server:
    """The server actor: starts the client actors, runs the rounds, streams them, and answers meanwhile."""

    def __init__(
        self, plan: list[Any], group: PlacementGroup, costs: Mapping[str, float], given: Sequence[Seat]
    ) -> None:
        names = [f"client-{i:02}" for i in range(1, len(given) + 1)]
        alone = {seat.site: name for name, seat in zip(names, given, strict=True) if seat.site is not None}
        home = assign(costs, names, alone)

        def start(name: str) -> Any:
            bundle = names.index(name)
            return _client(name, _title(name, home), plan, group, bundle, given[bundle])

        # Before the plan is opened, which imports much: so the clients start while this process does.
        clients = {name: start(name) for name in names}
        self.plan: Plan = ray.get(plan[0])
        run = {"seed": self.plan.seed, "rounds": self.plan.rounds, "chaos": self.plan.chaos}
        self.fleet = RayFleet(self.plan.task, clients, home, start, alone=alone, **run)

    def __repr__(self) -> str:
        return "server"

    def placed(self) -> Placed | Failed:
        """Where everything is, once all client actors are up, or which of them cannot start."""
        places, progress = self.fleet.places, self.fleet.ledger.progress
        coming = {client.place.remote(): name for name, client in self.fleet.actors.items()}
        progress.phase, progress.total = "starting actors", len(coming)
        while coming:
            ready, _ = ray.wait(list(coming), timeout=PATIENCE)
            if not ready:
                late = listed(sorted(coming.values()))
                return Failed(RunError(f"no client actor has started for {PATIENCE:g} s; waiting for {late}"))
            name = coming.pop(ready[0])
            try:
                places[name] = ray.get(ready[0])
            except RayError as error:
                failure = RunError(f"{name} has not started: {type(error).__name__}; what it said stands above")
                failure.remote = str(error)
                return Failed(failure)
            progress.done += 1
        if self.plan.chaos.needs_node and not self.fleet.others():
            return Failed(PlacementError("chaos: kill node needs a client actor on a node other than the command's"))
        return self._placed()

    def _placed(self) -> Placed:
        places = self.fleet.places
        return Placed([places[name] for name in self.fleet.actors if name in places], dict(self.fleet.home))

    def run(self) -> Iterator[Event]:
        """A Row per round, and a Placed after one in which an actor was replaced; then Summary or Failed."""
        moved = 0
        try:
            for event in perform(self.plan, self.fleet):
                yield event
                if moved != self.fleet.ledger.moved:
                    moved = self.fleet.ledger.moved
                    yield self._placed()
        except RaysimError as error:
            yield Failed(error)

    @ray.method(concurrency_group="status")
    def progress(self) -> Progress:
        """Where the present round stands."""
        return self.fleet.ledger.progress

    @ray.method(concurrency_group="status")
    def stop(self) -> None:
        """End the run at the next reply of a site."""
        self.fleet.ledger.stop.set()


def _title(name: str, home: Mapping[str, str]) -> str:
    """The name on the dashboard: the actor and the sites it plays, the first of them if there are many."""
    sites = sorted(site for site, actor in home.items() if actor == name)
    more = f",+{len(sites) - 4}" if len(sites) > 4 else ""
    return f"{name}[{','.join(sites[:4])}{more}]"


def _client(name: str, title: str, plan: list[Any], group: PlacementGroup, bundle: int, seat: Seat) -> Any:
    options = {
        "name": title,
        "num_cpus": seat.cpus,
        "num_gpus": seat.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle),
    }
    actor: Any = ray.remote(ClientActor)
    return actor.options(**options).remote(name, title, plan, seat.cpus, seat.gpus)


@contextmanager
def ray_running(address: str | None) -> Iterator[str]:
    """Ray, joined or started, with its dashboard's address; a Ray that was started here ends with the block."""
    asked = address or os.environ.get("RAY_ADDRESS")
    own = not asked
    try:
        if asked:
            _knock(asked)
        handler = signal.getsignal(signal.SIGTERM)
        context = ray.init(address="local" if own else asked, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process at once
    except (OSError, RuntimeError, ValueError) as error:
        raise PlacementError(f"cannot {'start Ray' if own else f'join Ray at {asked}'}: {error}") from error
    try:
        yield str(context.dashboard_url or "")
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError if nobody answers at HOST:PORT, where Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def _granted(group: PlacementGroup, given: Sequence[Seat]) -> Iterator[Event]:
    """Progress until all of the group is this run's; a Note if that takes long. Raises PlacementError if too long."""
    asked = Counter(" and ".join(f"{share:g} {kind}" for kind, share in seat.bundle.items()) for seat in given)
    wish = ", ".join(f"{count} x {each}" for each, count in asked.items())
    start, told_of_it = time.monotonic(), False
    while not group.wait(TICK):
        free = {kind: left for kind, left in ray.available_resources().items() if kind in ("CPU", "GPU")}
        waited = time.monotonic() - start
        if waited > PATIENCE:
            raise PlacementError(
                f"{wish} would fit this cluster but is not free after {PATIENCE:g} s; free now: {free or 'nothing'}. "
                "Wait for other work to end, or ask for less"
            )
        if waited > 5 and not told_of_it:
            told_of_it = True
            yield Note(f"waiting for {wish}, which others hold; free now: {free or 'nothing'}")
        yield Progress(phase=f"waiting for {wish}")


def stream(plan: Plan, resources: Resources, namespace: str) -> Generator[Event]:
    """Everything that happens in a run on the Ray that is running, as it happens, with Progress in between.

    Raises RunError if the server actor is lost. An exception thrown in (Ctrl-C) lets the run end cleanly first.
    """
    given = seats(resources, plan.task.inside, nodes(ray.nodes()), plan.task.outside)
    yield from check_store(plan)
    group = placement_group([seat.bundle for seat in given])
    try:
        yield from _granted(group, given)
        server = _server(plan, group, given, namespace)
        try:
            yield from _started(server)
            rounds = server.run.options(num_returns="streaming").remote()
            try:
                yield from _events(server, rounds)
            except (KeyboardInterrupt, GeneratorExit):
                server.stop.remote()
                for _ in _events(server, rounds):
                    pass
                raise
        except RayError as error:
            cause = f"the server actor was lost: {told(error)}"
            note(plan.out, [Incident(0, "", (), "server", cause, "ended the run")])
            raise RunError(f"{cause}") from error
        finally:
            ray.kill(server)
    finally:
        remove_placement_group(group)


def _server(plan: Plan, group: PlacementGroup, given: Sequence[Seat], namespace: str) -> Any:
    options = {
        "name": "server",
        "namespace": namespace,
        "num_cpus": 0,
        # Beside the command: a node that can die without it should not take the server along.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
    }
    sizes = plan.task.sizes
    costs = {site: 1.0 + sizes[site].get("train", 0) for site in (*plan.task.inside, *plan.task.outside)}
    decorate: Any = ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # its stub lacks it
    return decorate(Server).options(**options).remote([ray.put(plan)], group, costs, given)


def _started(server: Any) -> Iterator[Event]:
    placed = server.placed.remote()
    answer = server.progress.remote()
    while not ray.wait([placed], timeout=TICK)[0]:
        if ray.wait([answer], timeout=0)[0]:
            yield ray.get(answer)
            answer = server.progress.remote()
    event = ray.get(placed)
    if isinstance(event, Failed):
        raise event.error
    yield event
    if without := [place.actor for place in event.places if place.gpus and place.device == "cpu"]:
        yield Note(f"torch finds no GPU at {listed(without)}, whatever Ray has given them: they work on their CPUs")


class Quiet:
    """Says whom a round waits for, when nothing has come for a minute, then for two, four, ..."""

    def __init__(self) -> None:
        self._stand: tuple[int, str, int] | None = None
        self._since, self._due = 0.0, QUIET

    def told(self, progress: Progress) -> Note | None:
        """A note, if it is time for one."""
        stand, now = (progress.round, progress.phase, progress.done), time.monotonic()
        if stand != self._stand:
            self._stand, self._since, self._due = stand, now, QUIET
        if now - self._since < self._due or not progress.total:
            return None
        self._due *= 2
        at = f"at work: {listed(progress.playing)}" if progress.playing else "no client actor is up"
        done = f"{progress.done} of {progress.total} sites done"
        return Note(
            f"round {progress.round + 1}, {progress.phase}: nothing for {now - self._since:.0f} s; {done}; {at}"
        )


def _events(server: Any, rounds: Any) -> Iterator[Event]:
    quiet = Quiet()
    while True:
        if ray.wait([rounds], timeout=TICK)[0]:
            try:
                yield ray.get(next(rounds))
            except StopIteration:
                return
        else:
            progress: Progress = ray.get(server.progress.remote(), timeout=PATIENCE)
            yield progress
            if note := quiet.told(progress):
                yield note
