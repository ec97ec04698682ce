"""The command's side of a run on Ray: joins or starts Ray, places the server actor, and follows what it says."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.config import Resources
from raysim.data.wording import listed
from raysim.dispatch import told
from raysim.errors import PlacementError, RunError
from raysim.fleet import Progress
from raysim.growth import coming, grows, starting
from raysim.log import note
from raysim.monitor import run_of
from raysim.node import token_file
from raysim.placement import Seat, nodes, seats
from raysim.preflight import check_store
from raysim.ray_fleet import PATIENCE
from raysim.run import Note, Plan, Row
from raysim.server import Event, Failed, Server, given_out, rooms
from raysim.types import Incident

GROWTH = 1800.0  # seconds for a cluster to grow by what a client actor needs
KNOCK = 10.0  # seconds for the head of a cluster to answer
QUIET = 60.0  # seconds without an answer of any site after which a note says whom the round waits for
SOON = 2.0  # seconds in which Ray gives what is free
TICK = 0.5  # seconds between two looks at the progress of a round


@contextmanager
def ray_running(address: str | None) -> Iterator[str]:
    """Ray, joined or started, with its dashboard's address; a Ray that was started here ends with the block."""
    if ray.is_initialized() and address is None:  # a notebook's, say
        yield str(ray._private.worker.get_dashboard_url() or "")
        return
    asked = address or os.environ.get("RAY_ADDRESS")
    own = not asked
    try:
        if asked:
            _knock(asked)
        handler = signal.getsignal(signal.SIGTERM)
        context = ray.init(address="local" if own else asked, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process at once
    except Exception as error:  # Ray raises what it likes here, a bare Exception too
        far = "; from a machine that is no node of it: raysim submit" if "node info" in str(error).lower() else ""
        raise PlacementError(f"cannot {'start Ray' if own else f'join Ray at {asked}'}: {error}{far}") from error
    try:
        yield str(context.dashboard_url or "")
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError if nobody answers at HOST:PORT or auto, where Ray itself would go on trying for minutes."""
    if address == "auto":
        address = canonicalize_bootstrap_address_or_die(address)
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()
        _admitted(address)


def _admitted(address: str) -> None:
    """Raises PermissionError if the Ray at HOST:PORT wants another token, or one at all, which Ray tells late."""
    environ = os.environ
    path = token_file(environ, Path.home())
    token = environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")
    with grpc.insecure_channel(address) as channel:
        try:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
            ask(b"", timeout=KNOCK, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                where = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else path
                said = f"it does not take the token in {where}" if token else f"it wants a token, and {path} holds none"
                raise PermissionError(f"{said}; copy its own, of the user who started it, to there") from error


def _growing(groups: Sequence[PlacementGroup], given: Sequence[Seat], most: int) -> Iterator[Event]:
    """Progress until the cluster, which may have `most` nodes, holds an actor. PlacementError if it never does."""
    wish, start, due = _wish(given), time.monotonic(), 0.0
    while not any(map(given_out, groups)):
        time.sleep(TICK)
        waited, alive, new = time.monotonic() - start, len(nodes(ray.nodes())), starting()
        if waited > GROWTH:
            raise PlacementError(
                f"asked for {wish}; after {GROWTH:g} s there are {alive} nodes of {most}: see `ray status`"
            )
        new_ones = "" if new is None else f"{new} nodes starting, "
        text = f"asked for {wish}: {alive} nodes of at most {most}, {new_ones}{waited:.0f} s"
        yield Progress(phase=text)
        if waited >= due:
            due = max(20.0, 2 * due)
            yield Note(text)
    if not all(map(given_out, groups)):  # those that have room now are all given out within a second or two
        time.sleep(SOON)
    if more := len(groups) - sum(map(given_out, groups)):
        room = f"{len(groups) - more} of {len(groups)} client actors have room"
        yield Note(f"asked for {wish}: {room}; the others join with their nodes")


def _wish(given: Sequence[Seat]) -> str:
    asked = Counter(" and ".join(f"{share:g} {kind}" for kind, share in seat.bundle.items()) for seat in given)
    return ", ".join(f"{count} x {each}" for each, count in asked.items())


def _seats(plan: Plan, resources: Resources) -> tuple[list[Seat], bool, int]:
    """The client actors to start, whether the cluster is large enough, and how many nodes it may grow to; 0: it cannot.

    The largest come first where it may grow, so that smaller ones do not take their nodes.
    """
    here, more = nodes(ray.nodes()), coming()
    try:
        given, fits = seats(resources, plan.task.inside, here, plan.task.outside), True
    except PlacementError:
        if not more:
            raise
        given, fits = seats(resources, plan.task.inside, [*here, *more], plan.task.outside), False
    if not more:
        return given, fits, 0
    return sorted(given, key=lambda seat: (-seat.gpus, -seat.cpus)), fits, len(here) + len(more)


def _granted(group: PlacementGroup, given: Sequence[Seat]) -> Iterator[Event]:
    """Progress until all of the group is this run's; a Note if that takes long. Raises PlacementError if too long."""
    wish = _wish(given)
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


def _room(groups: list[PlacementGroup], given: Sequence[Seat], fits: bool, most: int) -> Iterator[Event]:
    """Put what holds the client actors into `groups`, with what is to be told meanwhile.

    One group is given as a whole, so that of two runs neither holds half of what both need; but where nodes may come,
    they come one by one, and so does what is not free now.
    """
    bundles = [seat.bundle for seat in given]
    groups.append(placement_group(bundles))
    if not most:
        yield from _granted(groups[0], given)
    elif not (fits and groups[0].wait(SOON)):
        remove_placement_group(groups.pop())
        groups += [placement_group([each]) for each in bundles]
        yield from _growing(groups, given, most)


def stream(plan: Plan, resources: Resources, namespace: str) -> Generator[Event]:
    """Everything that happens in a run on the Ray that is running, as it happens, with Progress in between.

    Raises RunError if the server actor is lost. An exception thrown in (Ctrl-C) lets the run end cleanly first.
    """
    number = 1  # of the round that is played
    given, fits, most = _seats(plan, resources)
    yield from check_store(plan)
    groups = list[PlacementGroup]()
    try:
        yield from _room(groups, given, fits, most)
        server = _server(plan, groups, given, namespace)
        try:
            yield from _started(server)
            rounds = server.run.options(num_returns="streaming").remote()
            try:
                for event in _events(server, rounds):
                    number = event.number + 1 if isinstance(event, Row) else number
                    yield event
            except (KeyboardInterrupt, GeneratorExit):
                server.stop.remote()
                _drain(_events(server, rounds))
                raise
        except RayError as error:
            raise _lost(plan, number, error) from error
        finally:
            ray.kill(server)
    finally:
        for group in groups:
            remove_placement_group(group)


def _lost(plan: Plan, number: int, error: RayError) -> RunError:
    """The server actor is gone: noted, and as what the run ends with."""
    cause = f"the server actor {'does not answer' if isinstance(error, GetTimeoutError) else 'was lost'}: {told(error)}"
    if (plan.out / "log.jsonl").exists():  # else the run had not begun
        with suppress(OSError):
            note(plan.out, [Incident(number, "", (), "server", cause, "ended the run", remote=str(error))])
    return RunError(cause)


def _server(plan: Plan, groups: Sequence[PlacementGroup], given: Sequence[Seat], namespace: str) -> Any:
    options = {
        "name": f"{run_of(namespace)}/server",
        "namespace": namespace,
        "num_cpus": 0,
        # Beside the command: a node that can die without it should not take the server along. Were it soft, Ray would
        # at times take another node for an actor that asks for no CPU.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    }
    sizes = plan.task.sizes
    costs = {site: 1.0 + sizes[site].get("train", 0) for site in (*plan.task.inside, *plan.task.outside)}
    decorate: Any = ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # its stub lacks it
    patience = GROWTH if grows() else PATIENCE  # an autoscaler puts another node in the place of one that is lost
    return decorate(Server).options(**options).remote([ray.put(plan)], rooms(groups), costs, given, namespace, patience)


def _started(server: Any) -> Iterator[Event]:
    placed = server.placed.remote()
    answer, stand, since = server.progress.remote(), -1, time.monotonic()
    while not ray.wait([placed], timeout=TICK)[0]:
        if ray.wait([answer], timeout=0)[0]:
            progress: Progress = ray.get(answer)
            yield progress
            if progress.done != stand:
                stand, since = progress.done, time.monotonic()
            answer = server.progress.remote()
        elif time.monotonic() - since > 2 * PATIENCE:
            raise RunError(f"the server actor has not answered for {2 * PATIENCE:g} s; look at Ray's logs")
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
        at = "the server is at work" if progress.done == progress.total else at
        done = f"{progress.done} of {progress.total} sites done"
        return Note(
            f"round {progress.round + 1}, {progress.phase}: nothing for {now - self._since:.0f} s; {done}; {at}"
        )


def _drain(events: Iterator[Event]) -> None:
    """Let the run come to its end, if it does within a while."""
    end = time.monotonic() + PATIENCE
    with suppress(RayError):
        for _ in events:
            if time.monotonic() > end:
                return


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
