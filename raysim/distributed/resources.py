"""What fits where: which client actors a cluster has room for, and what to say if it is too few."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysim.config.schema import Resources
from raysim.core.errors import ConfigError, PlacementError

TOLERANCE = 1e-6  # ten shares of 0.1 are one


@dataclass(frozen=True)
class ActorResources:
    """What one client actor gets. `site` is the only one that it plays; None: all that have none of their own."""

    cpus: float
    gpus: float
    site: str | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """The same in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class NodeResources:
    """A node of the cluster and what it has in all."""

    name: str
    cpus: float
    gpus: float


class NodeCapacity:
    """What is left of a node. A fraction never spans two GPUs: 0.6 of each leaves 0.4 of each idle."""

    def __init__(self, node: NodeResources) -> None:
        self.cpus, self.gpus = node.cpus, [1.0] * int(node.gpus)

    def take(self, seat: ActorResources) -> bool:
        """Whether there was room for `seat`, which is taken then."""
        whole = int(seat.gpus) if seat.gpus >= 1 else 0
        part = seat.gpus - whole
        free = [i for i, left in enumerate(self.gpus) if left + TOLERANCE >= (1.0 if whole else part)]
        if self.cpus + TOLERANCE < seat.cpus or len(free) < max(whole, math.ceil(part)):
            return False
        self.cpus -= seat.cpus
        for i in sorted(free, key=self.gpus.__getitem__)[: whole or math.ceil(part)]:  # the fullest that will do
            self.gpus[i] -= 1.0 if whole else part
        return True


@dataclass(frozen=True)
class Fit:
    """How a wish and a cluster go together: `dedicated` are the seats of single sites, `lacking` those without room."""

    dedicated: tuple[ActorResources, ...]
    lacking: tuple[ActorResources, ...]
    asked: int  # other client actors, at the least
    room: int  # for others, up to as many as would be started

    @property
    def ok(self) -> bool:
        return not self.lacking and self.room >= self.asked


def live_nodes(listed: Sequence[Mapping[str, Any]]) -> list[NodeResources]:
    """The live nodes of `ray.live_nodes()`."""
    return [
        NodeResources(n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0))
        for n in listed
        if n["Alive"]
    ]


def plan_actors(
    resources: Resources, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str] = ()
) -> list[ActorResources]:
    """The client actors to start for the inside `sites`, and for those outside: the shared ones, then single sites'.

    Raises PlacementError, with the settings that would fit, if the cluster can never hold what is asked for.
    """
    fit = check_fit(resources, sites, cluster, outside)
    if not fit.ok:
        raise PlacementError(_refusal_message(resources, fit, sites, cluster, outside))
    count = fit.room if resources.client_actors == "auto" else fit.asked
    return [ActorResources(resources.cpus_per_client, resources.gpus_per_client)] * count + list(fit.dedicated)


def check_fit(
    resources: Resources, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str] = ()
) -> Fit:
    """What of the wish there is room for. Raises ConfigError for a share that no GPU can give."""
    dedicated = [ActorResources(*resources.of(site), site) for site in sorted(resources.sites)]
    shared = ActorResources(resources.cpus_per_client, resources.gpus_per_client)
    for seat in (shared, *dedicated):
        if seat.gpus > 1 and seat.gpus != int(seat.gpus):
            raise ConfigError(f"{seat.gpus:g} GPUs for a client actor: expected a fraction up to 1, or a whole number")
    rooms = [NodeCapacity(node) for node in cluster]
    largest = sorted(dedicated, key=lambda seat: (-seat.gpus, -seat.cpus))
    lacking = [seat for seat in largest if not any(room.take(seat) for room in rooms)]
    asked, most = _actor_counts(resources, sites, outside)
    room = sum(1 for _ in range(most) if any(room.take(shared) for room in rooms))
    return Fit(tuple(dedicated), tuple(lacking), asked, room)


def _actor_counts(resources: Resources, sites: Sequence[str], outside: Sequence[str]) -> tuple[int, int]:
    """How many shared client actors there have to be, and how many there may be."""
    rest = sum(site not in resources.sites for site in sites)
    if not rest:
        least = int(any(site not in resources.sites for site in outside))
        return least, least
    if isinstance(resources.client_actors, int):
        return min(resources.client_actors, rest), min(resources.client_actors, rest)
    return (1 if resources.client_actors == "auto" else rest), rest


def _refusal_message(
    resources: Resources, fit: Fit, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str]
) -> str:
    there = "; ".join(f"{node.name}: {node.cpus:g} CPU, {node.gpus:g} GPU" for node in cluster)
    asked = [f"a client actor of {_describe(seat)} for site '{seat.site}'" for seat in fit.lacking[:3]]
    if fit.asked > fit.room:
        shared = ActorResources(resources.cpus_per_client, resources.gpus_per_client)
        asked.append(f"{fit.asked} client actor{'s' * (fit.asked > 1)} of {_describe(shared)} each")
        asked[-1] += f"; the cluster has room for {fit.room}" + (
            " beside those of single sites" if fit.dedicated else ""
        )
    else:
        asked[-1] += "; the cluster has no room for it"
    cures = list(dict.fromkeys(_fitting_settings(resources, fit, sites, cluster, outside)))[:3]
    return f"asked for {', '.join(asked)} ({there}). What would fit: {', or '.join(cures) or 'nothing on this cluster'}"


def _describe(seat: ActorResources) -> str:
    return f"{seat.cpus:g} CPU and {seat.gpus:g} GPU"


def _fitting_settings(
    resources: Resources, fit: Fit, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str]
) -> Iterator[str]:
    """Settings with which the run fits, each on its own."""

    def fits(wish: Resources) -> bool:
        return check_fit(wish, sites, cluster, outside).ok

    if fit.asked > fit.room > 0:
        yield from (
            f"resources.client_actors={c}" for c in (fit.room, "auto") if fits(replace(resources, client_actors=c))
        )
    for site in [seat.site for seat in fit.lacking[:1]] or [None]:
        if cure := _smaller(resources, site, max(fit.asked, len(sites)), fits):
            yield cure
    if resources.sites and fits(replace(resources, sites={})):
        yield "no resources.sites"


def _smaller(resources: Resources, site: str | None, most: int, fits: Callable[[Resources], bool]) -> str | None:
    """The largest shares, of `site` or of all, with which the run fits, as one setting; None if no share would do."""
    cpus = _largest(_share(resources, site, "gpus", 0.0), site, "cpus", most, fits)
    if cpus is None:
        return None
    fitting = _share(resources, site, "cpus", cpus)
    gpus = _largest(fitting, site, "gpus", most, fits) or 0.0
    now = {"cpus": _of(resources, site)[0], "gpus": _of(resources, site)[1]}
    key = "resources.{}_per_client" if site is None else f"resources.sites.{site}.{{}}"
    found = {"cpus": cpus, "gpus": gpus}
    return " ".join(f"{key.format(kind)}={share:g}" for kind, share in found.items() if share != now[kind])


def _largest(
    resources: Resources, site: str | None, kind: str, most: int, fits: Callable[[Resources], bool]
) -> float | None:
    """The largest share of one kind, not above what is asked, with which the run fits."""
    now = _of(resources, site)[("cpus", "gpus").index(kind)]
    whole = range(math.ceil(now) - 1, 0, -1)
    parts = (math.floor(10_000 / n) / 10_000 for n in range(2, most + 1))  # rounded down: fits as it is shown
    shares = [share for share in (now, *whole, *parts) if share <= now]
    first = bisect_left(shares, True, key=lambda share: fits(_share(resources, site, kind, share)))
    return shares[first] if first < len(shares) else None


def _of(resources: Resources, site: str | None) -> tuple[float, float]:
    return resources.of(site) if site is not None else (resources.cpus_per_client, resources.gpus_per_client)


def _share(resources: Resources, site: str | None, kind: str, share: float) -> Resources:
    if site is None:
        cpus, gpus = (share, resources.gpus_per_client) if kind == "cpus" else (resources.cpus_per_client, share)
        return replace(resources, cpus_per_client=cpus, gpus_per_client=gpus)
    return replace(resources, sites={**resources.sites, site: replace(resources.sites[site], **{kind: share})})
