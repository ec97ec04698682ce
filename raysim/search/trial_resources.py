"""The resources of a trial: its process or placement group, and how many trials run at once."""

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
from raysim.search.options import SearchOptions
from raysim.search.spec import SearchSpec

MAX_PROCESS_MODEL_BYTES = 2 * 2**30  # bytes of the models of all sites up to which a trial runs in one process


@dataclass(frozen=True)
class TrialPlacement:
    """The search with the backend of its trials, the resource bundles of each, and how many run at once."""

    spec: SearchSpec
    bundles: Sequence[Mapping[str, float]]
    concurrent_trials: int
    description: str
    growing: bool = False  # whether the autoscaler may add nodes for it


def plan_trials(spec: SearchSpec, options: SearchOptions) -> TrialPlacement:
    """The placement of the trials: in one process each if they are small, else on client actors in a placement group.

    Settings of the user (backend, resources.client_actors, resources.sites) are kept. Raises PlacementError if a trial
    can never fit.
    """
    wanted = min(spec.trial_count, options.max_concurrent or spec.trial_count)
    nodes, provisionable = live_nodes(ray.nodes()), provisionable_nodes()
    if not provisionable:
        return _plan_on(spec, wanted, nodes)
    grown = replace(_plan_on(spec, wanted, [*nodes, *provisionable]), growing=True)
    try:
        return replace(_plan_on(spec, wanted, nodes), concurrent_trials=grown.concurrent_trials, growing=True)
    except PlacementError:
        return grown


def _plan_on(spec: SearchSpec, wanted: int, nodes: Sequence[NodeResources]) -> TrialPlacement:
    """The placement of up to `wanted` concurrent trials on these nodes."""
    resources, task = resolve(spec.base).resources, spec.task
    assert task is not None
    shares = [resources.of(site) for site in (*task.inside, *task.outside)]
    largest = ActorResources(max(cpus for cpus, _ in shares), max(gpus for _, gpus in shares))
    capacity = _count_fitting([largest], nodes)
    if not _runs_in_one_process(spec, resources, capacity, wanted):
        if resources.client_actors == "auto":
            resources = replace(resources, client_actors=max(1, min(len(task.inside), capacity // wanted)))
        return _plan_client_actors(spec, resources, wanted, largest, nodes)
    single = Resources(cpus_per_client=largest.cpus, gpus_per_client=largest.gpus, client_actors=1)
    plan_actors(single, task.inside[:1], nodes)  # raises if it fits on no node
    description = f"each in a process of {largest.cpus:g} CPU and {largest.gpus:g} GPU"
    concurrent = min(wanted, max(1, capacity))
    return TrialPlacement(replace(spec, backend="local"), [largest.resources], concurrent, description)


def _plan_client_actors(
    spec: SearchSpec,
    resources: Resources,
    wanted: int,
    largest: ActorResources,
    nodes: Sequence[NodeResources],
) -> TrialPlacement:
    """Up to `wanted` concurrent trials on client actors, the largest of which has `largest`."""
    if len(spec.variants) > 1:
        raise ConfigError(
            "a trial with several federations (--seeds, --holdout, --folds) runs in one process, but client actors are "
            "requested; remove backend, resources.client_actors and resources.sites, or search seed=grid(0, 1, 2)"
        )
    task = spec.task
    assert task is not None
    actors = plan_actors(resources, task.inside, nodes, task.outside)
    resources = replace(resources, client_actors=max(1, sum(actor.site is None for actor in actors)))
    placed = replace(spec, backend="ray", base=merge(spec.base, {"resources": to_plain(resources)}))
    description = (
        f"each with {len(actors)} client actors ({largest.cpus:g} CPU and {largest.gpus:g} GPU) in a placement group"
    )
    bundles = [{}, *(actor.resources for actor in actors)]
    concurrent = min(wanted, max(1, _count_fitting(actors, nodes)))
    return TrialPlacement(placed, bundles, concurrent, description)


def _runs_in_one_process(spec: SearchSpec, resources: Resources, capacity: int, wanted: int) -> bool:
    """Whether a trial runs in a single process, without client actors."""
    backend = spec.base.get("backend")
    if backend is not None:
        return bool(backend == "local")
    if resources.sites or resources.client_actors != "auto":
        return False
    if len(spec.variants) > 1:
        return True
    task = spec.task
    assert task is not None
    return capacity < 2 * wanted and len(task.inside) * model_bytes(task) < MAX_PROCESS_MODEL_BYTES


def _count_fitting(actors: Sequence[ActorResources], nodes: Sequence[NodeResources]) -> int:
    """The number of times that all of `actors` fit on the nodes together."""
    capacities, count = [NodeCapacity(node) for node in nodes], 0
    if all(actor.cpus <= TOLERANCE and actor.gpus <= TOLERANCE for actor in actors):
        return 1
    while all(any(capacity.take(actor) for capacity in capacities) for actor in actors):
        count += 1
    return count
