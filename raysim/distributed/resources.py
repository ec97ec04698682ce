"""Resources of client actors and nodes: the actors that fit onto a cluster, and settings that would fit."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysim.config.schema import Resources
from raysim.core.errors import ConfigError, PlacementError
from raysim.core.formatting import format_argument

TOLERANCE = 1e-6  # so that ten shares of 0.1 add up to 1


@dataclass(frozen=True)
class ActorResources:
    """CPUs and GPUs of one client actor. `site` is set for an actor that is dedicated to one site."""

    cpus: float
    gpus: float
    site: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """The resources by Ray's names, as a bundle of a placement group."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class NodeResources:
    """A node of the cluster and its total resources."""

    name: str
    cpus: float
    gpus: float


class NodeCapacity:
    """The free resources of a node. A fraction never spans two GPUs: actors of 0.6 leave 0.4 of each GPU idle."""

    def __init__(self, node: NodeResources) -> None:
        self.cpus, self.gpus = node.cpus, [1.0] * int(node.gpus)

    def take(self, actor: ActorResources) -> bool:
        """Reserve the resources of `actor`; False, without a change, if they are not free."""
        whole = int(actor.gpus) if actor.gpus >= 1 else 0
        fraction = actor.gpus - whole
        free = [i for i, left in enumerate(self.gpus) if left + TOLERANCE >= (1.0 if whole else fraction)]
        if self.cpus + TOLERANCE < actor.cpus or len(free) < max(whole, math.ceil(fraction)):
            return False
        self.cpus -= actor.cpus
        for i in sorted(free, key=self.gpus.__getitem__)[
            : whole or math.ceil(fraction)
        ]:  # the fullest GPU that suffices
            self.gpus[i] -= 1.0 if whole else fraction
        return True


@dataclass(frozen=True)
class FitReport:
    """Which of the requested client actors fit onto a cluster."""

    dedicated: tuple[ActorResources, ...]  # the actors of single sites
    unplaced: tuple[ActorResources, ...]  # dedicated actors that do not fit
    required: int  # smallest number of shared client actors
    available: int  # shared client actors that fit, up to the number to start

    @property
    def ok(self) -> bool:
        return not self.unplaced and self.available >= self.required


def live_nodes(listed: Sequence[Mapping[str, Any]]) -> list[NodeResources]:
    """The live nodes among the entries of `ray.nodes()`."""
    return [
        NodeResources(n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0))
        for n in listed
        if n["Alive"]
    ]


def plan_actors(
    resources: Resources, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str] = ()
) -> list[ActorResources]:
    """The client actors to start for the inside `sites` and those outside: shared ones first, then dedicated ones.

    Raises PlacementError, with settings that would fit, if the cluster is too small.
    """
    fit = check_fit(resources, sites, cluster, outside)
    if not fit.ok:
        raise PlacementError(_refusal_message(resources, fit, sites, cluster, outside))
    count = fit.available if resources.client_actors == "auto" else fit.required
    return [ActorResources(resources.cpus_per_client, resources.gpus_per_client)] * count + list(fit.dedicated)


def check_fit(
    resources: Resources, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str] = ()
) -> FitReport:
    """Which of the client actors fit onto the cluster. Raises ConfigError for a share that Ray cannot assign."""
    dedicated = [ActorResources(*resources.of(site), site) for site in sorted(resources.sites)]
    shared = ActorResources(resources.cpus_per_client, resources.gpus_per_client)
    for actor in (shared, *dedicated):
        if actor.gpus > 1 and actor.gpus != int(actor.gpus):
            raise ConfigError(f"GPUs of a client actor: {actor.gpus:g}; expected a fraction up to 1, or a whole number")
    nodes = [NodeCapacity(node) for node in cluster]
    largest_first = sorted(dedicated, key=lambda actor: (-actor.gpus, -actor.cpus))
    unplaced = [actor for actor in largest_first if not any(node.take(actor) for node in nodes)]
    required, most = _actor_counts(resources, sites, outside)
    available = sum(1 for _ in range(most) if any(node.take(shared) for node in nodes))
    return FitReport(tuple(dedicated), tuple(unplaced), required, available)


def _actor_counts(resources: Resources, sites: Sequence[str], outside: Sequence[str]) -> tuple[int, int]:
    """The least and the greatest number of shared client actors."""
    shared_sites = sum(site not in resources.sites for site in sites)
    if not shared_sites:
        least = int(any(site not in resources.sites for site in outside))
        return least, least
    if isinstance(resources.client_actors, int):
        return min(resources.client_actors, shared_sites), min(resources.client_actors, shared_sites)
    return (1 if resources.client_actors == "auto" else shared_sites), shared_sites


def _refusal_message(
    resources: Resources, fit: FitReport, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str]
) -> str:
    nodes = "; ".join(f"{node.name}: {node.cpus:g} CPU, {node.gpus:g} GPU" for node in cluster)
    requests = [f"a client actor of {_describe(actor)} for site '{actor.site}'" for actor in fit.unplaced[:3]]
    if fit.required > fit.available:
        shared = ActorResources(resources.cpus_per_client, resources.gpus_per_client)
        requests.append(f"{fit.required} client actor{'s' * (fit.required > 1)} of {_describe(shared)} each")
        dedicated = " in addition to the dedicated actors of single sites" if fit.dedicated else ""
        requests[-1] += f"; {fit.available} fit onto the cluster{dedicated}"
    else:
        requests[-1] += "; it does not fit onto the cluster"
    cures = list(dict.fromkeys(_fitting_settings(resources, fit, sites, cluster, outside)))[:3]
    cure = ", or ".join(cures) or "nothing on this cluster"
    return f"requested {', '.join(requests)} ({nodes}). What would fit: {cure}"


def _describe(actor: ActorResources) -> str:
    return f"{actor.cpus:g} CPU and {actor.gpus:g} GPU"


def _fitting_settings(
    resources: Resources, fit: FitReport, sites: Sequence[str], cluster: Sequence[NodeResources], outside: Sequence[str]
) -> Iterator[str]:
    """Settings with which the run fits; each one alone is sufficient."""

    def fits(changed: Resources) -> bool:
        return check_fit(changed, sites, cluster, outside).ok

    if fit.required > fit.available > 0:
        for count in (fit.available, "auto"):
            if fits(replace(resources, client_actors=count)):
                yield f"resources.client_actors={count}"
    for site in [actor.site for actor in fit.unplaced[:1]] or [None]:
        if cure := _smaller_shares(resources, site, max(fit.required, len(sites)), fits):
            yield cure
    if resources.sites and fits(replace(resources, sites={})):
        yield "the same run without resources.sites"


def _smaller_shares(resources: Resources, site: str | None, most: int, fits: Callable[[Resources], bool]) -> str | None:
    """The largest shares, of `site` or of all, with which the run fits, as one setting; None if no share is enough."""
    cpus = _largest_share(_with_share(resources, site, "gpus", 0.0), site, "cpus", most, fits)
    if cpus is None:
        return None
    fitting = _with_share(resources, site, "cpus", cpus)
    gpus = _largest_share(fitting, site, "gpus", most, fits) or 0.0
    requested = {"cpus": _shares(resources, site)[0], "gpus": _shares(resources, site)[1]}
    found = {"cpus": cpus, "gpus": gpus}
    changed = {kind: float(f"{share:g}") for kind, share in found.items() if share != requested[kind]}
    if site is not None and not site.replace("-", "_").isidentifier():  # a dotted key cannot name this site
        return format_argument("resources.sites", {site: changed})
    key = "resources.{}_per_client" if site is None else f"resources.sites.{site}.{{}}"
    return " ".join(f"{key.format(kind)}={share:g}" for kind, share in changed.items())


def _largest_share(
    resources: Resources, site: str | None, kind: str, most: int, fits: Callable[[Resources], bool]
) -> float | None:
    """The largest share of one kind, not above the requested one, with which the run fits."""
    requested = _shares(resources, site)[("cpus", "gpus").index(kind)]
    whole = range(math.ceil(requested) - 1, 0, -1)
    fractions = (math.floor(10_000 / n) / 10_000 for n in range(2, most + 1))  # rounded down: the printed value fits
    shares = [share for share in (requested, *whole, *fractions) if share <= requested]
    first = bisect_left(shares, True, key=lambda share: fits(_with_share(resources, site, kind, share)))
    return shares[first] if first < len(shares) else None


def _shares(resources: Resources, site: str | None) -> tuple[float, float]:
    return resources.of(site) if site is not None else (resources.cpus_per_client, resources.gpus_per_client)


def _with_share(resources: Resources, site: str | None, kind: str, share: float) -> Resources:
    if site is None:
        cpus, gpus = (share, resources.gpus_per_client) if kind == "cpus" else (resources.cpus_per_client, share)
        return replace(resources, cpus_per_client=cpus, gpus_per_client=gpus)
    return replace(resources, sites={**resources.sites, site: replace(resources.sites[site], **{kind: share})})
