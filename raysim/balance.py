"""Which client actor plays which sites: the longest first, then exchanges that shorten the round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

FEW = 64  # sites up to which exchanges are tried: of more, the longest first leaves nothing to gain
HAIR = 1e-6
GAIN = 0.97  # a site stays with the actor that has its data open, unless the round becomes that much shorter

Home = dict[str, str]  # actor by site


def assign(costs: Mapping[str, float], actors: Sequence[str], alone: Mapping[str, str] | None = None) -> Home:
    """Each site's actor: the costliest first, each to the actor with the least to do; those `alone` to theirs."""
    home = dict(alone or {})
    load = dict.fromkeys((actor for actor in actors if actor not in home.values()), 0.0)
    shared = sorted(set(costs) - set(home), key=lambda site: (-costs[site], site))
    for site in shared:
        home[site] = min(load, key=load.__getitem__)
        load[home[site]] += costs[site]
    while len(shared) <= FEW and _exchange(home, load, costs, shared):
        pass
    return home


def settled(
    home: Mapping[str, str], costs: Mapping[str, float], actors: Sequence[str], alone: Mapping[str, str]
) -> Home:
    """The actors of the sites in `costs`: where they are at `home`, unless another sharing out is worth the move."""
    now = {site: home[site] for site in costs}
    wish = assign(costs, actors, {site: actor for site, actor in alone.items() if site in costs})
    return wish if longest(wish, costs) < GAIN * longest(now, costs) else now


def longest(home: Mapping[str, str], costs: Mapping[str, float]) -> float:
    """What the actor with the most to do has to do."""
    load: dict[str, float] = {}
    for site, actor in home.items():
        load[actor] = load.get(actor, 0.0) + costs.get(site, 0.0)
    return max(load.values(), default=0.0)


def _exchange(home: Home, load: dict[str, float], costs: Mapping[str, float], shared: Sequence[str]) -> bool:
    """Moves a site away from the busiest actor, or exchanges it for a cheaper one, if that helps; whether it did."""
    busiest = max(load, key=load.__getitem__)
    hair = HAIR * load[busiest]  # of less than that, rounding errors might take back and give again for ever
    for site in (site for site in shared if home[site] == busiest):
        for other, actor in _partners(home, load, shared, busiest):
            less = costs[site] - (costs[other] if other is not None else 0.0)
            if hair < less < load[busiest] - load[actor] - hair:
                home[site] = actor
                if other is not None:
                    home[other] = busiest
                load[busiest] -= less
                load[actor] += less
                return True
    return False


def _partners(
    home: Home, load: Mapping[str, float], shared: Sequence[str], busiest: str
) -> Iterator[tuple[str | None, str]]:
    """What the busiest actor may take in return, and from whom: a site, or nothing."""
    yield from ((None, actor) for actor in load if actor != busiest)
    yield from ((site, home[site]) for site in shared if home[site] != busiest)
