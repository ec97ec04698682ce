"""The wait for placement groups: until other runs release resources, or the cluster has grown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from raysim.core.errors import PlacementError
from raysim.core.events import Event, Notice, Progress
from raysim.distributed.admission import ResourceRequest, describe_bundles
from raysim.distributed.autoscaling import nodes_starting, provisionable_nodes
from raysim.distributed.placement_groups import is_group_ready
from raysim.distributed.resources import live_nodes
from raysim.distributed.timeouts import (
    ALLOCATION_TIMEOUT_S,
    AUTOSCALING_NOTICE_S,
    AUTOSCALING_TIMEOUT_S,
    PLACEMENT_NOTICE_S,
    PLACEMENT_TIMEOUT_S,
    POLL_INTERVAL_S,
)
from raysim.distributed.waiter import Waiter


def reserve(groups: list[PlacementGroup], request: ResourceRequest) -> Iterator[Event]:
    """Add the placement groups of the client actors to `groups`; progress and notices until they can start.

    On a cluster of fixed size it is one group, which Ray allocates as a whole: two runs that need the whole cluster
    never hold half of it each. Where nodes may join, each actor that does not fit at once has a group of its own.
    Raises PlacementError if it takes too long.
    """
    bundles = [actor.resources for actor in request.actors]
    groups.append(placement_group(bundles))
    if not request.max_nodes:
        yield from _wait_for_group(groups[0], request)
    elif not (request.fits and groups[0].wait(ALLOCATION_TIMEOUT_S)):
        remove_placement_group(groups.pop())
        groups += [placement_group([bundle]) for bundle in bundles]
        yield from _wait_for_autoscaler(groups, request)


def _wait_for_group(group: PlacementGroup, request: ResourceRequest) -> Iterator[Event]:
    """Progress until the whole group is allocated. Raises PlacementError if that takes too long."""
    waiter = Waiter(PLACEMENT_TIMEOUT_S, PLACEMENT_NOTICE_S, backoff=float("inf"))
    while not group.wait(POLL_INTERVAL_S):
        if waiter.expired:
            raise PlacementError(
                f"{request} would fit this cluster but is not free after {PLACEMENT_TIMEOUT_S:g} s; free now: "
                f"{free_resources()}. Wait for other work to end, or ask for less"
            )
        if waiter.notice_due():
            yield Notice(f"waiting for {request}, which others hold; free now: {free_resources()}")
        yield Progress(phase=f"waiting for {request}")


def _wait_for_autoscaler(groups: Sequence[PlacementGroup], request: ResourceRequest) -> Iterator[Event]:
    """Progress until one actor is allocated. Raises PlacementError if none is in time."""
    waiter = Waiter(AUTOSCALING_TIMEOUT_S, AUTOSCALING_NOTICE_S)
    if not any(map(is_group_ready, groups)):
        yield Notice(_autoscaling_notice(str(request), request.max_nodes, waiter))
    while not any(map(is_group_ready, groups)):
        time.sleep(POLL_INTERVAL_S)
        text = _autoscaling_notice(str(request), request.max_nodes, waiter)
        yield Progress(phase=text)
        if waiter.notice_due():
            yield Notice(text)
    if not all(map(is_group_ready, groups)):  # Ray needs a moment for those that fit at once
        time.sleep(ALLOCATION_TIMEOUT_S)
    ready = sum(map(is_group_ready, groups))
    if ready < len(groups):
        placed = f"{ready} of {len(groups)} client actors have room"
        yield Notice(f"asked for {request}: {placed}; the others join with their nodes")


def _autoscaling_notice(request: str, max_nodes: int, waiter: Waiter) -> str:
    """The state of the cluster while it grows. Raises PlacementError if the wait has expired."""
    alive, new = len(live_nodes(ray.nodes())), nodes_starting()
    if waiter.expired:
        raise PlacementError(
            f"asked for {request}; after {waiter.timeout_s:g} s there are {alive} nodes of {max_nodes}: "
            "see `ray status`"
        )
    starting = "" if new is None else f"{new} nodes starting, "
    return f"asked for {request}: {alive} nodes of at most {max_nodes}, {starting}{waiter.elapsed_s:.0f} s"


def free_resources() -> str:
    """The resources of the cluster that nobody uses now."""
    free = ray.available_resources()
    return ", ".join(f"{free[kind]:g} {kind}" for kind in ("CPU", "GPU") if free.get(kind)) or "nothing"


class TrialWait:
    """The wait of a search while none of its trials runs, each of which needs `bundles`."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], growing: bool) -> None:
        self.request = describe_bundles(bundles)
        self.max_nodes = len(live_nodes(ray.nodes())) + len(provisionable_nodes()) if growing else 0
        self.waiter = Waiter(AUTOSCALING_TIMEOUT_S, AUTOSCALING_NOTICE_S)

    def due_notice(self, running: int) -> str | None:
        """A notice if it is time for one; `running` trials end the wait. Raises PlacementError if it has expired."""
        if running:
            self.waiter.reset()
            return None
        if not self.waiter.notice_due() and not self.waiter.expired:
            return None
        if self.max_nodes:
            return _autoscaling_notice(self.request, self.max_nodes, self.waiter)
        if self.waiter.expired:
            raise PlacementError(
                f"no trial has run for {self.waiter.timeout_s:g} s: asked for {self.request}, free now: "
                f"{free_resources()}; ask for less"
            )
        waited = f"{self.waiter.elapsed_s:.0f} s"
        return f"no trial is running: asked for {self.request}, free now: {free_resources()}; {waited}"
