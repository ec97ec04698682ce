"""The wait for placement groups: until other runs release resources, or the cluster has grown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

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
    """Add the placement groups of the client actors to `groups`. Yields progress and notices until they can start.

    On a cluster of fixed size there is one group, which Ray allocates as a whole, so that two runs that need the whole
    cluster never reserve half of it each. If nodes may join and the group does not fit at once, each actor has a
    separate group. Raises PlacementError if the wait takes too long.
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
                f"{free_resources()}. Wait until other runs end, or request less (resources.client_actors)"
            )
        if waiter.notice_due():
            yield Notice(f"waiting for {request}, which other runs use; free now: {free_resources()}")
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
    if not all(map(is_group_ready, groups)):  # Ray needs some time for the groups that fit at once
        time.sleep(ALLOCATION_TIMEOUT_S)
    ready = sum(map(is_group_ready, groups))
    if ready < len(groups):
        placed = f"{ready} of {len(groups)} client actors can start"
        yield Notice(f"requested {request}: {placed}; the others start when their nodes join")


def _autoscaling_notice(request: str, max_nodes: int, waiter: Waiter) -> str:
    """The state of the cluster while it grows. Raises PlacementError if the wait has expired."""
    alive, new = len(live_nodes(ray.nodes())), nodes_starting()
    if waiter.expired:
        raise PlacementError(
            f"requested {request}; after {waiter.timeout_s:g} s the cluster has {alive} nodes of {max_nodes}: "
            "see `ray status`"
        )
    starting = "" if new is None else f"{new} nodes starting, "
    return f"requested {request}: {alive} nodes of at most {max_nodes}, {starting}{waiter.elapsed_s:.0f} s"


def free_resources() -> str:
    """The free resources of the cluster as text."""
    free = ray.available_resources()
    return ", ".join(f"{free[kind]:g} {kind}" for kind in ("CPU", "GPU") if free.get(kind)) or "nothing"


class TrialWait:
    """The wait of a search while none of its trials runs. Each trial needs `bundles`."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], growing: bool) -> None:
        self.request, self.bundles = describe_bundles(bundles), [dict(bundle) for bundle in bundles if bundle]
        self.max_nodes = len(live_nodes(ray.nodes())) + len(provisionable_nodes()) if growing else 0
        self.waiter = Waiter(AUTOSCALING_TIMEOUT_S, AUTOSCALING_NOTICE_S)

    def due_notice(self, running: int) -> str | None:
        """A notice if one is due; `running` trials end the wait. Raises PlacementError if the wait has expired."""
        if running:
            self.waiter.reset()
            return None
        if not self.waiter.notice_due() and not self.waiter.expired:
            return None
        if self.max_nodes:
            return _autoscaling_notice(self.request, self.max_nodes, self.waiter)
        if self.waiter.expired:
            raise PlacementError(
                f"no trial has run for {self.waiter.timeout_s:g} s: requested {self.request}, free now: "
                f"{free_resources()}; request less (resources)"
            )
        waited = f"{self.waiter.elapsed_s:.0f} s"
        if self._is_reserved():
            return f"{self.request} is reserved, and the process of the first trial is starting; {waited}"
        return f"no trial is running: requested {self.request}, free now: {free_resources()}; {waited}"

    def _is_reserved(self) -> bool:
        """Whether there is a placement group of a trial: its process starts, which imports torch and Ray Tune."""
        groups = [each for each in placement_group_table().values() if each["state"] == "CREATED"]
        return any([bundle for bundle in group["bundles"].values() if bundle] == self.bundles for group in groups)
