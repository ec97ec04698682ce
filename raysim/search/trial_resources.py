"""What a trial needs of the cluster, and how many of them fit at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from raysim.config.introspection import describe
from raysim.config.merge import merge, resolve
from raysim.config.schema import Resources
from raysim.core.errors import ConfigError, PlacementError
from raysim.distributed.autoscaling import coming
from raysim.distributed.resources import HAIR, Node, Room, Seat, nodes, seats
from raysim.federation.validation import model_bytes
from raysim.search.spec import Search

LARGE = 2 * 2**30  # bytes of all sites' models, above which a trial is not put into one process


@dataclass(frozen=True)
class Needs:
    """The search as it will be placed: the bundles of a trial, and how many trials fit at once."""

    search: Search
    bundles: Sequence[Mapping[str, float]]
    at_once: int
    said: str
    growing: bool = False  # whether the cluster may grow for it


def needs(search: Search, trials: int, max_concurrent: int | None) -> Needs:
    """Where a trial's sites run: in its own process if it is small, else on client actors in a placement group.

    `trials` are all that there will be, `max_concurrent` how many at once at most. What a user fixes (fleet,
    resources.clients, resources.sites) is kept. Raises PlacementError for what never fits.
    """
    here, more = nodes(ray.nodes()), coming()
    if not more:
        return _needs(search, trials, max_concurrent, here)
    grown = replace(_needs(search, trials, max_concurrent, [*here, *more]), growing=True)
    try:
        return replace(_needs(search, trials, max_concurrent, here), at_once=grown.at_once, growing=True)
    except PlacementError:
        return grown


def _needs(search: Search, trials: int, max_concurrent: int | None, cluster: Sequence[Node]) -> Needs:
    config, task = resolve(search.base), search.task
    assert task is not None
    resources = config.resources
    everybody = (*task.inside, *task.outside)
    each = Seat(max(resources.of(s)[0] for s in everybody), max(resources.of(s)[1] for s in everybody))
    alone = Resources(cpus_per_client=each.cpus, gpus_per_client=each.gpus, clients=1)
    slots = _fit([each], cluster)
    wanted = min(trials, max_concurrent or trials)
    if _own_process(search, resources, slots, wanted, len(task.inside)):
        seats(alone, task.inside[:1], cluster)  # refuses what fits nowhere
        placed = replace(search, fleet="local")
        said = f"each in a process of {each.cpus:g} CPU and {each.gpus:g} GPU"
        return Needs(placed, [each.bundle], min(wanted, max(1, slots)), said)
    if len(search.cells) > 1:
        raise ConfigError(
            "several federations in a trial (--seeds, --holdout) run in its own process, and client actors are asked "
            "for; leave fleet and resources.clients, or search seed=grid(0, 1, 2) instead"
        )
    clients = resources.clients
    if clients == "auto":
        clients = max(1, min(len(task.inside), slots // wanted))
    fixed = replace(resources, clients=clients)
    given = seats(fixed, task.inside, cluster, task.outside)
    fixed = replace(fixed, clients=max(1, sum(seat.site is None for seat in given)))
    base = merge(search.base, {"resources": describe(fixed)})
    said = f"each with {len(given)} client actors ({each.cpus:g} CPU and {each.gpus:g} GPU) in a placement group"
    bundles = [{}, *(seat.bundle for seat in given)]
    return Needs(replace(search, fleet="ray", base=base), bundles, min(wanted, max(1, _fit(given, cluster))), said)


def _own_process(search: Search, resources: Resources, slots: int, wanted: int, sites: int) -> bool:
    fleet = search.base.get("fleet")
    if fleet is not None:
        return bool(fleet == "local")
    if resources.sites or resources.clients != "auto":
        return False
    if len(search.cells) > 1:
        return True
    assert search.task is not None
    return slots < 2 * wanted and sites * model_bytes(search.task) < LARGE


def _fit(wish: Sequence[Seat], cluster: Sequence[Node]) -> int:
    """How many times all of `wish` goes into the cluster."""
    rooms, count = [Room(node) for node in cluster], 0
    if all(seat.cpus <= HAIR and seat.gpus <= HAIR for seat in wish):
        return 1
    while all(any(room.take(seat) for room in rooms) for seat in wish):
        count += 1
    return count
