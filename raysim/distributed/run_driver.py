"""The command's side of a run on Ray: reserves resources, starts the server actor, and streams its events."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.errors import RunError
from raysim.core.events import ActorsPlaced, Event, Notice, Progress, RoundEvent, RunFailed
from raysim.core.formatting import join_names, pluralize
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.admission import ResourceRequest
from raysim.distributed.autoscaling import has_autoscaler
from raysim.distributed.control_actor import RunControl, RunStatus, run_name
from raysim.distributed.placement_groups import actor_slots
from raysim.distributed.placement_wait import reserve
from raysim.distributed.ray_errors import summarize
from raysim.distributed.server_actor import ServerActor, ServerSpec, Work, server_spec
from raysim.distributed.timeouts import (
    AUTOSCALING_TIMEOUT_S,
    CONTROL_START_DELAY_S,
    NO_ACTOR_TIMEOUT_S,
    POLL_INTERVAL_S,
    SERVER_REPLY_TIMEOUT_S,
    SERVER_START_TIMEOUT_S,
    SHUTDOWN_TIMEOUT_S,
    SILENT_ROUND_NOTICE_S,
)
from raysim.distributed.waiter import Waiter
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation
from raysim.storage.event_log import append_failures
from raysim.storage.run_directory import LOG_FILE


def stream_events(
    plan: Plan, request: ResourceRequest, namespace: str, work: Work = run_federation
) -> Generator[Event]:
    """Yield every event of an admitted run, or of other `work`, on the connected Ray, with Progress in between.

    Raises RunError if the server actor is lost. After an exception that is thrown in (Ctrl-C), the run ends cleanly.
    """
    groups = list[PlacementGroup]()
    status = StatusPublisher(plan, run_name(namespace))
    try:
        for event in reserve(groups, request):
            if status.update(event):
                raise KeyboardInterrupt
            yield event
        slots = actor_slots(groups, request.actors)
        # An autoscaler replaces a lost node, which may take minutes.
        no_actor_timeout_s = AUTOSCALING_TIMEOUT_S if has_autoscaler() else NO_ACTOR_TIMEOUT_S
        yield Progress(phase=f"starting the server and {pluralize(len(request.actors), 'client actor')}")
        with _started_actors(server_spec(plan, slots, namespace, no_actor_timeout_s, work)) as server:
            yield from _run_server(server, plan, status)
    finally:
        status.close()
        for group in groups:
            remove_placement_group(group)


@contextmanager
def _started_actors(spec: ServerSpec) -> Iterator[Any]:
    """The server actor, which starts at the same time as the client actors. All of them end with the block."""
    clients = spec.client_starter().start_all()
    try:
        server = _start_server(replace(spec, actors=clients))
        try:
            yield server
        finally:
            ray.kill(server)
    finally:
        for client in clients.values():  # those that the server has started in their place end with the server
            ray.kill(client)


def _start_server(spec: ServerSpec) -> Any:
    options = {
        "name": f"{run_name(spec.namespace)}/server",
        "namespace": spec.namespace,
        "num_cpus": 0,
        # On the node of the command: the loss of another node must not end the server. With soft=True, Ray sometimes
        # chooses another node for an actor that needs no CPU.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    }
    decorate: Any = ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # its stub lacks it
    return decorate(ServerActor).options(**options).remote(spec)


def _run_server(server: Any, plan: Plan, status: StatusPublisher) -> Iterator[Event]:
    """Yield the events from the start of the client actors to the end of the run."""
    try:
        for event in _wait_for_actors(server):
            if status.update(event):
                server.stop.remote()
            yield event
        rounds = server.run.options(num_returns="streaming").remote()
        try:
            for event in _server_events(server, rounds):
                if status.update(event):
                    server.stop.remote()
                yield event
        except (KeyboardInterrupt, GeneratorExit):
            server.stop.remote()
            _drain(_server_events(server, rounds))
            raise
    except RayError as error:
        raise _server_lost(plan, status.rounds_done + 1, error) from error


def _server_lost(plan: Plan, number: int, error: RayError) -> RunError:
    """The error that ends the run. Records it as a failure, because the server, which records all others, is lost."""
    event = "does not answer" if isinstance(error, GetTimeoutError) else "was lost"
    cause = f"the server actor {event}: {summarize(error)}"
    if (plan.directory / LOG_FILE).exists():  # otherwise the run had not started
        failure = FailureEvent(number, "", (), "server", cause, FailureAction.RUN_ENDED, remote=str(error))
        with suppress(OSError):
            append_failures(plan.directory, [failure])
    return RunError(cause)


class StatusPublisher:
    """Publishes the status of a run, which its events update, to the control actor."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._metric = plan.metric
        self._control = RunControl(name, CONTROL_START_DELAY_S)
        self._status = RunStatus(
            name=name,
            description=plan.title,
            directory=str(plan.directory),
            host=socket.gethostname(),
            done=0,
            total=plan.config.rounds,
            metric=plan.metric,
        )

    @property
    def rounds_done(self) -> int:
        """The number of the last round that has ended."""
        return self._status.done or 0

    def update(self, event: Event) -> bool:
        """Update the status by an event, and publish it if it is due. Returns whether a stop was requested."""
        if isinstance(event, RoundEvent):
            value, seconds = event.values.get(f"{self._metric}/mean"), event.values.get("seconds")
            self._status = replace(self._status, done=event.number, value=value, round_seconds=seconds)
        elif isinstance(event, Progress):
            position = f", {event.done} of {event.total}" if event.total else ""
            self._status = replace(self._status, state=f"{event.phase}{position}")
        return self._control.due() and self._control.publish(self._status)

    def close(self) -> None:
        """End the control actor."""
        self._control.close()


def _wait_for_actors(server: Any) -> Iterator[Event]:
    """Yield Progress until the client actors are up, then ActorsPlaced. Raises the error if one does not start."""
    started = server.wait_for_actors.remote()
    reply, done, silence = server.progress.remote(), -1, Waiter(SERVER_START_TIMEOUT_S)
    while not ray.wait([started], timeout=POLL_INTERVAL_S)[0]:
        if ray.wait([reply], timeout=0)[0]:
            progress: Progress = ray.get(reply)
            yield progress
            if progress.done != done:
                done = progress.done
                silence.reset()
            reply = server.progress.remote()
        elif silence.expired:
            raise RunError(f"the server actor has not answered for {SERVER_START_TIMEOUT_S:g} s; look at Ray's logs")
    placed: ActorsPlaced | RunFailed = ray.get(started)
    if isinstance(placed, RunFailed):
        raise placed.error
    yield placed
    if without := [place.actor for place in placed.places if place.gpus and place.device == "cpu"]:
        yield Notice(
            f"torch finds no GPU at {join_names(without)}, although Ray has assigned one: these actors use their CPUs"
        )


class SilenceNotice:
    """Reports the sites that a round waits for, after a minute without a reply, then after two, four, ... minutes."""

    def __init__(self) -> None:
        self._position: tuple[int, str, int] | None = None
        self._waiter = Waiter(notify_after_s=SILENT_ROUND_NOTICE_S)

    def due_notice(self, progress: Progress) -> Notice | None:
        """A notice if one is due."""
        position = (progress.round, progress.phase, progress.done)
        if position != self._position:
            self._position = position
            self._waiter.reset()
        if not progress.total or not self._waiter.notice_due():
            return None
        active = f"running: {join_names(progress.active_sites)}" if progress.active_sites else "no client actor is up"
        active = "the server is running" if progress.done == progress.total else active
        done = f"{progress.done} of {progress.total} sites done"
        seconds = f"{self._waiter.elapsed_s:.0f} s"
        return Notice(f"round {progress.round + 1}, {progress.phase}: no reply for {seconds}; {done}; {active}")


def _server_events(server: Any, rounds: Any) -> Iterator[Event]:
    """Yield the events that the server streams, and its progress while there are none."""
    silence = SilenceNotice()
    while True:
        if ray.wait([rounds], timeout=POLL_INTERVAL_S)[0]:
            try:
                yield ray.get(next(rounds))
            except StopIteration:
                return
        else:
            progress: Progress = ray.get(server.progress.remote(), timeout=SERVER_REPLY_TIMEOUT_S)
            yield progress
            if notice := silence.due_notice(progress):
                yield notice


def _drain(events: Iterator[Event]) -> None:
    """Wait until an interrupted run has ended, up to the time limit."""
    waiter = Waiter(SHUTDOWN_TIMEOUT_S)
    with suppress(RayError):
        for _ in events:
            if waiter.expired:
                return
