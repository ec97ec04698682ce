"""Room for a run's client actors: what is asked for, and the wait until others end or the cluster has grown."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from raysim.core.errors import PlacementError
from raysim.core.events import Event, Notice, Progress
from raysim.distributed.autoscaling import nodes_starting, provisionable_nodes
from raysim.distributed.control_actor import run_name, start_control_actor
from raysim.distributed.ray_fleet import PATIENCE
from raysim.distributed.resources import ActorResources, live_nodes, plan_actors
from raysim.distributed.server_actor import is_group_ready
from raysim.federation.plan import Plan

ANSWER = 5.0  # seconds for what stands for a run to answer
AGAIN = 20.0  # seconds until the wait is told once more; then twice that, ...
GROWTH = 1800.0  # seconds for a cluster to grow by what a client actor needs
SOON = 2.0  # seconds in which Ray gives what is free
TICK = 0.5  # seconds between two looks at what Ray has given


@dataclass(frozen=True)
class ResourceRequest:
    """The client actors to start, whether the cluster is large enough, and how many nodes it may grow to; 0: it cannot.

    The largest come first where it may grow, so that smaller ones do not take their nodes.
    """

    seats: Sequence[ActorResources]
    fits: bool
    most: int

    def __str__(self) -> str:
        return describe_bundles(seat.bundle for seat in self.seats)


def describe_bundles(bundles: Iterable[Mapping[str, float]]) -> str:
    """What is asked for, equal parts together: 3 x 2 CPU and 0.5 GPU."""
    asked = Counter(" and ".join(f"{share:g} {kind}" for kind, share in each.items()) for each in bundles if each)
    return ", ".join(f"{count} x {each}" for each, count in asked.items())


def free_resources() -> str:
    """What nobody has of the cluster now."""
    left = ray.available_resources()
    return ", ".join(f"{left[kind]:g} {kind}" for kind in ("CPU", "GPU") if left.get(kind)) or "nothing"


def request(plan: Plan) -> ResourceRequest:
    """What the run asks for. Raises PlacementError for what neither fits nor will."""
    here, more = live_nodes(ray.nodes()), provisionable_nodes()
    try:
        given, fits = plan_actors(plan.config.resources, plan.task.inside, here, plan.task.outside), True
    except PlacementError:
        if not more:
            raise
        given, fits = plan_actors(plan.config.resources, plan.task.inside, [*here, *more], plan.task.outside), False
    if not more:
        return ResourceRequest(given, fits, 0)
    return ResourceRequest(sorted(given, key=lambda seat: (-seat.gpus, -seat.cpus)), fits, len(here) + len(more))


def reserve(groups: list[PlacementGroup], wish: ResourceRequest) -> Iterator[Event]:
    """Put what holds the client actors into `groups`, with what is to be told meanwhile.

    One group is given as a whole, so that of two runs neither holds half of what both need; but where nodes may come,
    they come one by one, and so does what is not free now. Raises PlacementError if that takes too long.
    """
    bundles = [seat.bundle for seat in wish.seats]
    groups.append(placement_group(bundles))
    if not wish.most:
        yield from _wait_for_group(groups[0], wish)
    elif not (wish.fits and groups[0].wait(SOON)):
        remove_placement_group(groups.pop())
        groups += [placement_group([each]) for each in bundles]
        yield from _wait_for_autoscaler(groups, wish)


def _wait_for_group(group: PlacementGroup, wish: ResourceRequest) -> Iterator[Event]:
    """Progress until all of the group is this run's; a Note if that takes long. Raises PlacementError if too long."""
    start, told_of_it = time.monotonic(), False
    while not group.wait(TICK):
        waited = time.monotonic() - start
        if waited > PATIENCE:
            raise PlacementError(
                f"{wish} would fit this cluster but is not free after {PATIENCE:g} s; free now: {free_resources()}. "
                "Wait for other work to end, or ask for less"
            )
        if waited > 5 and not told_of_it:
            told_of_it = True
            yield Notice(f"waiting for {wish}, which others hold; free now: {free_resources()}")
        yield Progress(phase=f"waiting for {wish}")


def _wait_for_autoscaler(groups: Sequence[PlacementGroup], wish: ResourceRequest) -> Iterator[Event]:
    """Progress until the cluster holds an actor. Raises PlacementError if it never does."""
    start, due = time.monotonic(), 0.0
    while not any(map(is_group_ready, groups)):
        time.sleep(TICK)
        waited = time.monotonic() - start
        text = _autoscaling_notice(str(wish), wish.most, waited)
        yield Progress(phase=text)
        if waited >= due:
            due = max(AGAIN, 2 * due)
            yield Notice(text)
    if not all(map(is_group_ready, groups)):  # those that have room now are all given out within a second or two
        time.sleep(SOON)
    if more := len(groups) - sum(map(is_group_ready, groups)):
        room = f"{len(groups) - more} of {len(groups)} client actors have room"
        yield Notice(f"asked for {wish}: {room}; the others join with their nodes")


def _autoscaling_notice(wish: str, most: int, waited: float) -> str:
    """What is said while the cluster grows. Raises PlacementError if that takes too long."""
    alive, new = len(live_nodes(ray.nodes())), nodes_starting()
    if waited > GROWTH:
        raise PlacementError(
            f"asked for {wish}; after {GROWTH:g} s there are {alive} nodes of {most}: see `ray status`"
        )
    new_ones = "" if new is None else f"{new} nodes starting, "
    return f"asked for {wish}: {alive} nodes of at most {most}, {new_ones}{waited:.0f} s"


class Patience:
    """What a search says while none of its trials runs, each of which asks for `bundles`."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], growing: bool) -> None:
        self.wish, self.most = (
            describe_bundles(bundles),
            len(live_nodes(ray.nodes())) + len(provisionable_nodes()) if growing else 0,
        )
        self._since, self._due = time.monotonic(), AGAIN

    def due_notice(self, running: int) -> str | None:
        """A line, if it is time for one. Raises PlacementError if no trial has begun for too long."""
        now = time.monotonic()
        waited = now - self._since
        if running:
            self._since, self._due = now, AGAIN
        if running or waited < min(self._due, GROWTH):
            return None
        self._due *= 2
        if self.most:
            return _autoscaling_notice(self.wish, self.most, waited)
        if waited > GROWTH:
            raise PlacementError(
                f"no trial has run for {GROWTH:g} s: asked for {self.wish}, free now: {free_resources()}; ask for less"
            )
        return f"no trial is running: asked for {self.wish}, free now: {free_resources()}; {waited:.0f} s"


class Sight:
    """What `raysim status` and `raysim stop` find of a run that waits, until its server actor is there."""

    def __init__(self, plan: Plan, namespace: str) -> None:
        self.name = run_name(namespace)
        self._stand: Any = None
        self._answer: Any = None
        self._said: dict[str, Any] = {"run": self.name, "what": plan.title}
        self._said |= {"folder": str(plan.directory), "host": socket.gethostname(), "of": plan.config.rounds}

    def over(self, waiting: Iterator[Event]) -> Iterator[Event]:
        """The events of the wait. Raises KeyboardInterrupt if someone asks for the end of the run."""
        start = time.monotonic()
        for event in waiting:
            yield event
            if isinstance(event, Progress) and time.monotonic() - start > SOON:
                self._said["at"] = event.phase
                self._tell(0)

    def close(self) -> bool:
        """End what stands for the run; whether someone has asked for the end of the run meanwhile."""
        asked = False
        if self._stand is not None:
            try:
                self._tell(ANSWER)
                self._tell(ANSWER)  # the first may have answered before that was asked
            except KeyboardInterrupt:
                asked = True
            ray.kill(self._stand)
        return asked

    def _tell(self, patience: float) -> None:
        asked = False
        with suppress(RayError, ValueError):  # the run goes on without what stands for it
            self._stand = self._stand or start_control_actor(self.name, "waiting", self._said)
            if self._answer is None or ray.wait([self._answer], timeout=patience)[0]:
                asked = self._answer is not None and bool(ray.get(self._answer))
                self._answer = self._stand.tell.remote(self._said)
        if asked:
            raise KeyboardInterrupt
