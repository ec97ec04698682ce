"""What a trial needs of the cluster, and how many of them fit at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from raysim.config.introspection import to_plain
from raysim.config.merge import merge
from raysim.config.resolve import resolve
from raysim.config.schema import Resources
from raysim.core.errors import ConfigError, PlacementError
from raysim.distributed.autoscaling import provisionable_nodes
from raysim.distributed.resources import TOLERANCE, ActorResources, NodeCapacity, NodeResources, live_nodes, plan_actors
from raysim.federation.plan import model_bytes
from raysim.search.spec import SearchSpec

MAX_PROCESS_MODEL_BYTES = 2 * 2**30  # bytes of all sites' models, above which a trial is not put into one process


@dataclass(frozen=True)
class TrialPlacement:
    """The search as it will be placed: the bundles of a trial, and how many trials fit at once."""

    search: SearchSpec
    bundles: Sequence[Mapping[str, float]]
    concurrent_trials: int
    description: str
    growing: bool = False  # whether the cluster may grow for it


def plan_trials(search: SearchSpec, trials: int, max_concurrent: int | None) -> TrialPlacement:
    """Where a trial's sites run: in its own process if it is small, else on client actors in a placement group.

    `trials` are all that there will be, `max_concurrent` how many at once at most. What a user fixes (backend,
    resources.client_actors, resources.sites) is kept. Raises PlacementError for what never fits.
    """
    here, more = live_nodes(ray.nodes()), provisionable_nodes()
    if not more:
        return _needs(search, trials, max_concurrent, here)
    grown = replace(_needs(search, trials, max_concurrent, [*here, *more]), growing=True)
    try:
        return replace(
            _needs(search, trials, max_concurrent, here), concurrent_trials=grown.concurrent_trials, growing=True
        )
    except PlacementError:
        return grown


def _needs(
    search: SearchSpec, trials: int, max_concurrent: int | None, cluster: Sequence[NodeResources]
) -> TrialPlacement:
    config, task = resolve(search.base), search.task
    assert task is not None
    resources = config.resources
    everybody = (*task.inside, *task.outside)
    each = ActorResources(max(resources.of(s)[0] for s in everybody), max(resources.of(s)[1] for s in everybody))
    alone = Resources(cpus_per_client=each.cpus, gpus_per_client=each.gpus, client_actors=1)
    slots = _fit([each], cluster)
    wanted = min(trials, max_concurrent or trials)
    if _own_process(search, resources, slots, wanted, len(task.inside)):
        plan_actors(alone, task.inside[:1], cluster)  # refuses what fits nowhere
        placed = replace(search, backend="local")
        said = f"each in a process of {each.cpus:g} CPU and {each.gpus:g} GPU"
        return TrialPlacement(placed, [each.resources], min(wanted, max(1, slots)), said)
    if len(search.variants) > 1:
        raise ConfigError(
            "several federations in a trial (--seeds, --holdout) run in its own process, and client actors are asked "
            "for; leave fleet and resources.client_actors, or search seed=grid(0, 1, 2) instead"
        )
    clients = resources.client_actors
    if clients == "auto":
        clients = max(1, min(len(task.inside), slots // wanted))
    fixed = replace(resources, client_actors=clients)
    given = plan_actors(fixed, task.inside, cluster, task.outside)
    fixed = replace(fixed, client_actors=max(1, sum(seat.site is None for seat in given)))
    base = merge(search.base, {"resources": to_plain(fixed)})
    said = f"each with {len(given)} client actors ({each.cpus:g} CPU and {each.gpus:g} GPU) in a placement group"
    bundles = [{}, *(seat.resources for seat in given)]
    return TrialPlacement(
        replace(search, backend="ray", base=base), bundles, min(wanted, max(1, _fit(given, cluster))), said
    )


def _own_process(search: SearchSpec, resources: Resources, slots: int, wanted: int, sites: int) -> bool:
    fleet = search.base.get("backend")
    if fleet is not None:
        return bool(fleet == "local")
    if resources.sites or resources.client_actors != "auto":
        return False
    if len(search.variants) > 1:
        return True
    assert search.task is not None
    return slots < 2 * wanted and sites * model_bytes(search.task) < MAX_PROCESS_MODEL_BYTES


def _fit(wish: Sequence[ActorResources], cluster: Sequence[NodeResources]) -> int:
    """How many times all of `wish` goes into the cluster."""
    rooms, count = [NodeCapacity(node) for node in cluster], 0
    if all(seat.cpus <= TOLERANCE and seat.gpus <= TOLERANCE for seat in wish):
        return 1
    while all(any(room.take(seat) for room in rooms) for seat in wish):
        count += 1
    return count
