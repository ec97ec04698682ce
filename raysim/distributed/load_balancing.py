"""Load balancing: assigns sites to client actors, the longest first, then by exchanges that shorten the round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

MAX_EXCHANGE_SITES = 32  # with more sites, exchanges gain nothing over single moves
TOLERANCE = 1e-6
BALANCED = 0.995  # even load / largest load, from which sites are no longer moved
MIN_GAIN = 0.97  # a site stays with the actor that has its data open, unless a move shortens the round to this fraction

Assignment = dict[str, str]  # site -> actor


def assign(
    costs: Mapping[str, float], actors: Sequence[str], dedicated_actors: Mapping[str, str] | None = None
) -> Assignment:
    """The actor of each site in `costs` (seconds): the costliest first, each to the actor with the least load.

    Sites in `dedicated_actors` are assigned to their dedicated actor, which gets no other site.
    """
    dedicated_actors = dedicated_actors or {}
    load = dict.fromkeys((actor for actor in actors if actor not in dedicated_actors.values()), 0.0)
    site_to_actor = {}
    for site in sorted(set(costs) - set(dedicated_actors), key=lambda site: (-costs[site], site)):
        site_to_actor[site] = min(load, key=load.__getitem__)
        load[site_to_actor[site]] += costs[site]
    return _improve(site_to_actor, costs, load) | {
        site: dedicated_actors[site] for site in dedicated_actors if site in costs
    }


def rebalance(
    site_to_actor: Mapping[str, str],
    costs: Mapping[str, float],
    actors: Sequence[str],
    dedicated_actors: Mapping[str, str],
) -> Assignment:
    """The actor of each site in `costs` (seconds): that of `site_to_actor`, unless moves shorten the round."""
    fixed = {site: actor for site, actor in dedicated_actors.items() if site in costs}
    current = {site: site_to_actor[site] for site in costs if site not in dedicated_actors}
    load = {actor: 0.0 for actor in actors if actor not in dedicated_actors.values()}
    for site, actor in current.items():
        load[actor] += costs[site]
    shared = {site: costs[site] for site in current}
    if makespan(current, costs) * MIN_GAIN <= max(sum(shared.values()) / max(len(load), 1), *shared.values(), 0.0):
        return current | fixed
    best = current
    candidates = [_improve(current, shared, load)]
    if len(shared) <= MAX_EXCHANGE_SITES:  # with more, a new assignment would move nearly all
        candidates.append(assign(shared, list(load)))
    for candidate in candidates:
        if makespan(candidate, costs) < MIN_GAIN * makespan(best, costs):
            best = candidate
    return best | fixed


def makespan(site_to_actor: Mapping[str, str], costs: Mapping[str, float]) -> float:
    """The load of the busiest actor: seconds of the round."""
    load: dict[str, float] = {}
    for site, actor in site_to_actor.items():
        load[actor] = load.get(actor, 0.0) + costs.get(site, 0.0)
    return max(load.values(), default=0.0)


def _improve(site_to_actor: Assignment, costs: Mapping[str, float], load: Mapping[str, float]) -> Assignment:
    """`site_to_actor` after all moves and exchanges that shorten the round."""
    found, loads = dict(site_to_actor), dict(load)
    shared = sorted(found, key=lambda site: (-costs[site], site))
    even = max(sum(loads.values()) / max(len(loads), 1), max((costs[site] for site in shared), default=0.0))
    while shared and max(loads.values()) * BALANCED > even and _exchange(found, loads, costs, shared):
        pass
    return found


def _exchange(
    site_to_actor: Assignment, load: dict[str, float], costs: Mapping[str, float], shared: Sequence[str]
) -> bool:
    """Move a site from the busiest actor, or exchange it for a cheaper one: the largest gain. False if none gains."""
    busiest = max(load, key=load.__getitem__)
    epsilon = TOLERANCE * load[busiest]  # rounding errors could undo and redo a smaller gain forever
    best = None
    best_gain = epsilon
    for site in (site for site in shared if site_to_actor[site] == busiest):
        for other, actor in _partners(site_to_actor, load, shared, busiest):
            moved = costs[site] - (costs[other] if other is not None else 0.0)
            gain = min(moved, load[busiest] - load[actor] - moved)  # seconds by which the later one ends earlier
            if gain > best_gain + (epsilon if best else 0.0):
                best_gain, best = gain, (site, other, actor, moved)
    if best is None:
        return False
    site, other, actor, moved = best
    site_to_actor[site] = actor
    if other is not None:
        site_to_actor[other] = busiest
    load[busiest] -= moved
    load[actor] += moved
    return True


def _partners(
    site_to_actor: Assignment, load: Mapping[str, float], shared: Sequence[str], busiest: str
) -> Iterator[tuple[str | None, str]]:
    """The sites that the busiest actor may get in exchange (None: no site), each with its actor."""
    yield from ((None, actor) for actor in load if actor != busiest)
    if len(shared) <= MAX_EXCHANGE_SITES:
        yield from ((site, site_to_actor[site]) for site in shared if site_to_actor[site] != busiest)
