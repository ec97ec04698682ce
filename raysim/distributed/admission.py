"""Admission: checks, before the first actor starts, whether a run fits the cluster."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray

from raysim.core.errors import PlacementError
from raysim.core.events import Notice
from raysim.core.formatting import format_bytes
from raysim.distributed import ray_compat
from raysim.distributed.autoscaling import provisionable_nodes
from raysim.distributed.cluster_checks import check_cluster
from raysim.distributed.resources import ActorResources, live_nodes, plan_actors
from raysim.federation.cohort import cohort_size
from raysim.federation.plan import Plan
from raysim.federation.runner import idle_gpu_notices

DISK_SHARE = 0.9  # share of the free disk that a suggested cohort may fill


@dataclass(frozen=True)
class ResourceRequest:
    """The client actors to start; if the cluster can grow, the largest first, so that they are placed first."""

    actors: Sequence[ActorResources]
    fits: bool  # whether they fit onto the present nodes
    max_nodes: int  # nodes that the cluster can grow to; 0 if it cannot grow

    def __str__(self) -> str:
        return describe_bundles(actor.resources for actor in self.actors)


def describe_bundles(bundles: Iterable[Mapping[str, float]]) -> str:
    """Bundles of resources as text, equal ones combined: 3 x 2 CPU and 0.5 GPU."""
    counts = Counter(" and ".join(f"{share:g} {kind}" for kind, share in each.items()) for each in bundles if each)
    return ", ".join(f"{count} x {each}" for each, count in counts.items())


def admit(plan: Plan, *, joined: bool = False) -> Generator[Notice, None, ResourceRequest]:
    """The client actors of the run, after all checks of the cluster. Yields notices of possible problems.

    The nodes of a cluster that was `joined` must have this command's versions and be able to read the data of the
    task. Raises PlacementError if a check fails, or if the client actors cannot fit.
    """
    if joined:
        yield from check_cluster(plan.task, plan.config.task)
    request = request_actors(plan)
    gpus = sum(actor.gpus for actor in request.actors)
    yield from idle_gpu_notices(gpus, sum(node.gpus for node in live_nodes(ray.nodes())))
    yield from check_object_store(plan)
    return request


def request_actors(plan: Plan) -> ResourceRequest:
    """The client actors of the run. Raises PlacementError if they fit neither now nor when the cluster has grown."""
    here, more = live_nodes(ray.nodes()), provisionable_nodes()
    task, resources, fits = plan.task, plan.config.resources, True
    try:
        actors = plan_actors(resources, task.inside, here, task.outside)
    except PlacementError:
        if not more:
            raise
        actors, fits = plan_actors(resources, task.inside, [*here, *more], task.outside), False
    if not more:
        return ResourceRequest(actors, fits, 0)
    largest_first = sorted(actors, key=lambda actor: (-actor.gpus, -actor.cpus))
    return ResourceRequest(largest_first, fits, len(here) + len(more))


def check_object_store(plan: Plan) -> Iterator[Notice]:
    """A notice if the replies of a round spill to the disk. Raises PlacementError if memory and disk are too small."""
    count = cohort_size(plan.config.cohort.size, len(plan.task.inside))
    needed = (count + 2) * plan.model_bytes  # models of the sites, and of the server before and after the round
    store = int(ray.cluster_resources().get("object_store_memory", 0))
    if needed <= store:
        return
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    spill = ray_compat.session_directory(here)
    free = shutil.disk_usage(spill).free
    found = (
        f"the models of a round ({count} sites) need {format_bytes(needed)}; Ray's object stores have "
        f"{format_bytes(store)}"
    )
    if needed > store + free:
        fitting = max(1, int(count * (store + free) / needed * DISK_SHARE))
        raise PlacementError(
            f"{found}, and the disk for spilled objects ({spill}) has {format_bytes(free)} free. What would fit: "
            f"cohort={fitting}, a smaller network, or a larger store (ray start --object-store-memory)"
        )
    yield Notice(f"{found}: Ray spills the rest to disk, which is slow")
