"""Ray's side of a run: joins or starts Ray, places the actors, and lets the server actor run the rounds."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from raysim.client import ClientActor, Place
from raysim.config import Resources
from raysim.dispatch import told
from raysim.errors import PlacementError, RaysimError, RunError
from raysim.fleet import Progress
from raysim.log import note
from raysim.placement import count_clients, nodes
from raysim.ray_fleet import RayFleet, assign
from raysim.run import Note, Plan, Row, Summary, perform
from raysim.types import Incident

PATIENCE = 120.0  # seconds for actors to start on a cluster that has room for them
KNOCK = 10.0  # seconds for the head of a cluster to answer
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
        self, plan: list[Any], group: PlacementGroup, costs: Mapping[str, float], resources: Resources
    ) -> None:
        names = [f"client-{i:02}" for i in range(1, group.bundle_count + 1)]
        home = assign(costs, names)

        def start(name: str) -> Any:
            return _client(name, _title(name, home), plan, group, names.index(name), resources)

        # Before the plan is opened, which imports much: so the clients start while this process does.
        clients = {name: start(name) for name in names}
        self.plan: Plan = ray.get(plan[0])
        given = {"seed": self.plan.seed, "rounds": self.plan.rounds, "chaos": self.plan.chaos}
        self.fleet = RayFleet(self.plan.task, clients, home, start, **given)

    def __repr__(self) -> str:
        return "server"

    def placed(self) -> Placed | Failed:
        """Where everything is, once all client actors are up, or which of them cannot start."""
        places = self.fleet.places
        for name, client in self.fleet.actors.items():
            try:
                places[name] = ray.get(client.place.remote(), timeout=PATIENCE)
            except RayError as error:
                failure = RunError(f"{name} has not started: {type(error).__name__}; what it said stands above")
                failure.remote = str(error)
                return Failed(failure)
        if self.plan.chaos.needs_node and not self.fleet.others():
            return Failed(PlacementError("chaos: kill node needs a client actor on a node other than the command's"))
        return Placed(list(places.values()), dict(self.fleet.home))

    def run(self) -> Iterator[Event]:
        """A Row per round, then Summary or Failed."""
        try:
            yield from perform(self.plan, self.fleet)
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


def _client(name: str, title: str, plan: list[Any], group: PlacementGroup, bundle: int, resources: Resources) -> Any:
    options = {
        "name": title,
        "num_cpus": resources.cpus_per_client,
        "num_gpus": resources.gpus_per_client,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle),
    }
    actor: Any = ray.remote(ClientActor)
    return actor.options(**options).remote(name, title, plan, resources.cpus_per_client, resources.gpus_per_client)


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


@contextmanager
def reserved(resources: Resources, sites: int) -> Iterator[PlacementGroup]:
    """One bundle for each client actor, all at once or none; given back with the block.

    Raises PlacementError at once for what can never fit, and after a while for what others hold.
    """
    count = count_clients(resources, sites, nodes(ray.nodes()))
    bundle = {"CPU": resources.cpus_per_client}
    if resources.gpus_per_client:
        bundle["GPU"] = resources.gpus_per_client
    group = placement_group([bundle] * count)
    try:
        if not group.wait(PATIENCE):
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            raise PlacementError(
                f"{count} x {bundle} would fit this cluster but is not free after {PATIENCE:g} s; free now: {free}. "
                "Wait for other work to end, or ask for less"
            )
        yield group
    finally:
        remove_placement_group(group)


def stream(plan: Plan, resources: Resources, namespace: str) -> Generator[Event]:
    """Everything that happens in a run on the Ray that is running, as it happens, with Progress in between.

    Raises RunError if the server actor is lost. An exception thrown in (Ctrl-C) lets the run end cleanly first.
    """
    with reserved(resources, len(plan.task.inside)) as group:
        server = _server(plan, group, resources, namespace)
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


def _server(plan: Plan, group: PlacementGroup, resources: Resources, namespace: str) -> Any:
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
    return decorate(Server).options(**options).remote([ray.put(plan)], group, costs, resources)


def _started(server: Any) -> Iterator[Event]:
    placed = server.placed.remote()
    while not ray.wait([placed], timeout=TICK)[0]:
        yield Progress(phase="starting actors")
    event = ray.get(placed)
    if isinstance(event, Failed):
        raise event.error
    yield event


def _events(server: Any, rounds: Any) -> Iterator[Event]:
    while True:
        if ray.wait([rounds], timeout=TICK)[0]:
            try:
                yield ray.get(next(rounds))
            except StopIteration:
                return
        else:
            yield ray.get(server.progress.remote())
