"""Which client actor plays which sites: the longest first, then exchanges that shorten the round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

FEW = 32  # sites up to which exchanges are tried too: of more, single moves leave nothing to gain
HAIR = 1e-6
ENOUGH = 0.995  # of an even share: what is as good as that is not moved about any more
GAIN = 0.97  # a site stays with the actor that has its data open, unless the round becomes that much shorter

Home = dict[str, str]  # actor by site


def assign(costs: Mapping[str, float], actors: Sequence[str], alone: Mapping[str, str] | None = None) -> Home:
    """The actor of each site in `costs`: the costliest first, each to the actor with the least to do.

    Sites that are `alone` go to their actors, which get nothing else.
    """
    alone = alone or {}
    load = dict.fromkeys((actor for actor in actors if actor not in alone.values()), 0.0)
    home = {}
    for site in sorted(set(costs) - set(alone), key=lambda site: (-costs[site], site)):
        home[site] = min(load, key=load.__getitem__)
        load[home[site]] += costs[site]
    return _improved(home, costs, load) | {site: alone[site] for site in alone if site in costs}


def settled(
    home: Mapping[str, str], costs: Mapping[str, float], actors: Sequence[str], alone: Mapping[str, str]
) -> Home:
    """The actors of the sites in `costs`: where they are at `home`, unless moves shorten the round."""
    ours = {site: actor for site, actor in alone.items() if site in costs}
    now = {site: home[site] for site in costs if site not in alone}
    load = {actor: 0.0 for actor in actors if actor not in alone.values()}
    for site, actor in now.items():
        load[actor] += costs[site]
    shared = {site: costs[site] for site in now}
    if longest(now, costs) * GAIN <= max(sum(shared.values()) / max(len(load), 1), *shared.values(), 0.0):
        return now | ours
    best = now
    wishes = [_improved(now, shared, load)]
    if len(shared) <= FEW:  # of more, it would move nearly all
        wishes.append(assign(shared, list(load)))
    for wish in wishes:
        if longest(wish, costs) < GAIN * longest(best, costs):
            best = wish
    return best | ours


def longest(home: Mapping[str, str], costs: Mapping[str, float]) -> float:
    """What the actor with the most to do has to do."""
    load: dict[str, float] = {}
    for site, actor in home.items():
        load[actor] = load.get(actor, 0.0) + costs.get(site, 0.0)
    return max(load.values(), default=0.0)


def _improved(home: Home, costs: Mapping[str, float], load: Mapping[str, float]) -> Home:
    """`home` after all exchanges that shorten the round."""
    found, left = dict(home), dict(load)
    shared = sorted(found, key=lambda site: (-costs[site], site))
    even = max(sum(left.values()) / max(len(left), 1), max((costs[site] for site in shared), default=0.0))
    while shared and max(left.values()) * ENOUGH > even and _exchange(found, left, costs, shared):
        pass
    return found


def _exchange(home: Home, load: dict[str, float], costs: Mapping[str, float], shared: Sequence[str]) -> bool:
    """Moves a site away from the busiest actor, or exchanges it for a cheaper one, as helps most; whether it helps."""
    busiest = max(load, key=load.__getitem__)
    hair = HAIR * load[busiest]  # of less than that, rounding errors might take back and give again for ever
    found = None
    most = hair
    for site in (site for site in shared if home[site] == busiest):
        for other, actor in _partners(home, load, shared, busiest):
            less = costs[site] - (costs[other] if other is not None else 0.0)
            helps = min(less, load[busiest] - load[actor] - less)  # so much earlier the later of the two is done
            if helps > most + (hair if found else 0.0):
                most, found = helps, (site, other, actor, less)
    if found is None:
        return False
    site, other, actor, less = found
    home[site] = actor
    if other is not None:
        home[other] = busiest
    load[busiest] -= less
    load[actor] += less
    return True


def _partners(
    home: Home, load: Mapping[str, float], shared: Sequence[str], busiest: str
) -> Iterator[tuple[str | None, str]]:
    """What the busiest actor may take in return, and from whom: nothing, or a site."""
    yield from ((None, actor) for actor in load if actor != busiest)
    if len(shared) <= FEW:
        yield from ((site, home[site]) for site in shared if home[site] != busiest)
