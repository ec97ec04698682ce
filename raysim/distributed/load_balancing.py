"""Which client actor plays which sites: the longest first, then exchanges that shorten the round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

MAX_EXCHANGE_SITES = 32  # sites up to which exchanges are tried too: of more, single moves leave nothing to gain
TOLERANCE = 1e-6
BALANCED = 0.995  # of an even share: what is as good as that is not moved about any more
MIN_GAIN = 0.97  # a site stays with the actor that has its data open, unless the round becomes that much shorter

Assignment = dict[str, str]  # actor by site


def assign(
    costs: Mapping[str, float], actors: Sequence[str], dedicated_actors: Mapping[str, str] | None = None
) -> Assignment:
    """The actor of each site in `costs`: the costliest first, each to the actor with the least to do.

    Sites that are `dedicated_actors` go to their actors, which get nothing else.
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
    """The actors of the sites in `costs`: where they are at `site_to_actor`, unless moves shorten the round."""
    ours = {site: actor for site, actor in dedicated_actors.items() if site in costs}
    now = {site: site_to_actor[site] for site in costs if site not in dedicated_actors}
    load = {actor: 0.0 for actor in actors if actor not in dedicated_actors.values()}
    for site, actor in now.items():
        load[actor] += costs[site]
    shared = {site: costs[site] for site in now}
    if makespan(now, costs) * MIN_GAIN <= max(sum(shared.values()) / max(len(load), 1), *shared.values(), 0.0):
        return now | ours
    best = now
    wishes = [_improve(now, shared, load)]
    if len(shared) <= MAX_EXCHANGE_SITES:  # of more, it would move nearly all
        wishes.append(assign(shared, list(load)))
    for wish in wishes:
        if makespan(wish, costs) < MIN_GAIN * makespan(best, costs):
            best = wish
    return best | ours


def makespan(site_to_actor: Mapping[str, str], costs: Mapping[str, float]) -> float:
    """What the actor with the most to do has to do."""
    load: dict[str, float] = {}
    for site, actor in site_to_actor.items():
        load[actor] = load.get(actor, 0.0) + costs.get(site, 0.0)
    return max(load.values(), default=0.0)


def _improve(site_to_actor: Assignment, costs: Mapping[str, float], load: Mapping[str, float]) -> Assignment:
    """`site_to_actor` after all exchanges that shorten the round."""
    found, left = dict(site_to_actor), dict(load)
    shared = sorted(found, key=lambda site: (-costs[site], site))
    even = max(sum(left.values()) / max(len(left), 1), max((costs[site] for site in shared), default=0.0))
    while shared and max(left.values()) * BALANCED > even and _exchange(found, left, costs, shared):
        pass
    return found


def _exchange(
    site_to_actor: Assignment, load: dict[str, float], costs: Mapping[str, float], shared: Sequence[str]
) -> bool:
    """Moves a site away from the busiest actor, or exchanges it for a cheaper one, as helps most; whether it helps."""
    busiest = max(load, key=load.__getitem__)
    hair = TOLERANCE * load[busiest]  # of less than that, rounding errors might take back and give again for ever
    found = None
    most = hair
    for site in (site for site in shared if site_to_actor[site] == busiest):
        for other, actor in _partners(site_to_actor, load, shared, busiest):
            less = costs[site] - (costs[other] if other is not None else 0.0)
            helps = min(less, load[busiest] - load[actor] - less)  # so much earlier the later of the two is done
            if helps > most + (hair if found else 0.0):
                most, found = helps, (site, other, actor, less)
    if found is None:
        return False
    site, other, actor, less = found
    site_to_actor[site] = actor
    if other is not None:
        site_to_actor[other] = busiest
    load[busiest] -= less
    load[actor] += less
    return True


def _partners(
    site_to_actor: Assignment, load: Mapping[str, float], shared: Sequence[str], busiest: str
) -> Iterator[tuple[str | None, str]]:
    """What the busiest actor may take in return, and from whom: nothing, or a site."""
    yield from ((None, actor) for actor in load if actor != busiest)
    if len(shared) <= MAX_EXCHANGE_SITES:
        yield from ((site, site_to_actor[site]) for site in shared if site_to_actor[site] != busiest)
