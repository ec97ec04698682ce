"""The command's side of a run on Ray: joins or starts Ray, places the server actor, and follows what it says."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.errors import RunError
from raysim.core.events import Event, Notice, Progress, RoundEvent, RunFailed
from raysim.core.formatting import join_names
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.autoscaling import has_autoscaler
from raysim.distributed.capacity_checks import check_object_store
from raysim.distributed.control_actor import run_name
from raysim.distributed.placement_wait import GROWTH, ResourceRequest, Sight, request, reserve
from raysim.distributed.ray_errors import summarize
from raysim.distributed.ray_fleet import PATIENCE
from raysim.distributed.resources import ActorResources
from raysim.distributed.server_actor import ServerActor, scheduling_strategies
from raysim.federation.plan import Plan
from raysim.storage.event_log import append_failures

QUIET = 60.0  # seconds without an answer of any site after which a note says whom the round waits for
TICK = 0.5  # seconds between two looks at the progress of a round


def stream_events(plan: Plan, namespace: str) -> Generator[Event]:
    """Everything that happens in a run on the Ray that is running, as it happens, with Progress in between.

    Raises RunError if the server actor is lost. An exception thrown in (Ctrl-C) lets the run end cleanly first.
    """
    number = 1  # of the round that is played
    wish = request(plan)
    yield from check_object_store(plan)
    groups = list[PlacementGroup]()
    try:
        server = yield from _start_server(plan, groups, wish, namespace)
        try:
            yield from _wait_for_actors(server)
            rounds = server.run.options(num_returns="streaming").remote()
            try:
                for event in _events(server, rounds):
                    number = event.number + 1 if isinstance(event, RoundEvent) else number
                    yield event
            except (KeyboardInterrupt, GeneratorExit):
                server.stop.remote()
                _drain(_events(server, rounds))
                raise
        except RayError as error:
            raise _server_lost(plan, number, error) from error
        finally:
            ray.kill(server)
    finally:
        for group in groups:
            remove_placement_group(group)


def _server_lost(plan: Plan, number: int, error: RayError) -> RunError:
    """The server actor is gone: noted, and as what the run ends with."""
    cause = f"the server actor {'does not answer' if isinstance(error, GetTimeoutError) else 'was lost'}: {summarize(error)}"
    if (plan.directory / "log.jsonl").exists():  # else the run had not begun
        with suppress(OSError):
            failure = FailureEvent(number, "", (), "server", cause, FailureAction.RUN_ENDED, remote=str(error))
            append_failures(plan.directory, [failure])
    return RunError(cause)


def _start_server(
    plan: Plan, groups: list[PlacementGroup], wish: ResourceRequest, namespace: str
) -> Generator[Event, None, Any]:
    """The server actor, once a client actor has room. Raises KeyboardInterrupt if someone has asked for the end."""
    sight = Sight(plan, namespace)
    try:
        yield from sight.over(reserve(groups, wish))
        server = _server(plan, groups, wish.seats, namespace)
    finally:
        asked = sight.close()  # only now, when the server actor can be asked
    if asked:
        ray.kill(server)
        raise KeyboardInterrupt
    return server


def _server(plan: Plan, groups: Sequence[PlacementGroup], given: Sequence[ActorResources], namespace: str) -> Any:
    options = {
        "name": f"{run_name(namespace)}/server",
        "namespace": namespace,
        "num_cpus": 0,
        # Beside the command: a node that can die without it should not take the server along. Were it soft, Ray would
        # at times take another node for an actor that asks for no CPU.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    }
    sizes = plan.task.sizes
    costs = {site: 1.0 + sizes[site].get("train", 0) for site in plan.sites}
    decorate: Any = ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # its stub lacks it
    patience = (
        GROWTH if has_autoscaler() else PATIENCE
    )  # an autoscaler puts another node in the place of one that is lost
    return (
        decorate(ServerActor)
        .options(**options)
        .remote([ray.put(plan)], scheduling_strategies(groups), costs, given, namespace, patience)
    )


def _wait_for_actors(server: Any) -> Iterator[Event]:
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
    if isinstance(event, RunFailed):
        raise event.error
    yield event
    if without := [place.actor for place in event.places if place.gpus and place.device == "cpu"]:
        yield Notice(
            f"torch finds no GPU at {join_names(without)}, whatever Ray has given them: they work on their CPUs"
        )


class SilenceNotice:
    """Says whom a round waits for, when nothing has come for a minute, then for two, four, ..."""

    def __init__(self) -> None:
        self._stand: tuple[int, str, int] | None = None
        self._since, self._due = 0.0, QUIET

    def due_notice(self, progress: Progress) -> Notice | None:
        """A note, if it is time for one."""
        stand, now = (progress.round, progress.phase, progress.done), time.monotonic()
        if stand != self._stand:
            self._stand, self._since, self._due = stand, now, QUIET
        if now - self._since < self._due or not progress.total:
            return None
        self._due *= 2
        at = f"at work: {join_names(progress.active_sites)}" if progress.active_sites else "no client actor is up"
        at = "the server is at work" if progress.done == progress.total else at
        done = f"{progress.done} of {progress.total} sites done"
        return Notice(
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
    quiet = SilenceNotice()
    while True:
        if ray.wait([rounds], timeout=TICK)[0]:
            try:
                yield ray.get(next(rounds))
            except StopIteration:
                return
        else:
            progress: Progress = ray.get(server.progress.remote(), timeout=PATIENCE)
            yield progress
            if note := quiet.due_notice(progress):
                yield note
