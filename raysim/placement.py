"""What fits where: how many client actors a cluster has room for, and what to say if it is too few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysim.config import Resources
from raysim.errors import PlacementError


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it has in all."""

    name: str
    cpus: float
    gpus: float

    def room(self, resources: Resources) -> int:
        """How many client actors fit here."""
        fits = int(self.cpus / resources.cpus_per_client + 1e-6)
        if resources.gpus_per_client > 0:
            fits = min(fits, _on_gpus(self.gpus, resources.gpus_per_client))
        return fits


def _on_gpus(gpus: float, share: float) -> int:
    # A fraction never spans two GPUs: 0.6 of each leaves 0.4 of each idle.
    return int(gpus) * int(1 / share + 1e-6) if share < 1 else int(gpus / share + 1e-6)


def nodes(listed: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The live nodes of `ray.nodes()`."""
    return [
        Node(n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0))
        for n in listed
        if n["Alive"]
    ]


def count_clients(resources: Resources, sites: int, cluster: Sequence[Node]) -> int:
    """How many client actors to start for `sites` inside sites.

    Raises PlacementError, with the settings that would fit, if the cluster can never hold what is asked for.
    """
    room = sum(node.room(resources) for node in cluster)
    asked = {"auto": 1, "per_site": sites}.get(str(resources.clients), resources.clients)
    assert isinstance(asked, int)
    if room < asked:
        raise PlacementError(_refusal(resources, asked, room, cluster))
    return min(sites, room) if resources.clients == "auto" else min(asked, sites)


def _refusal(resources: Resources, asked: int, room: int, cluster: Sequence[Node]) -> str:
    each = f"{resources.cpus_per_client:g} CPU and {resources.gpus_per_client:g} GPU"
    there = "; ".join(f"{n.name}: {n.cpus:g} CPU, {n.gpus:g} GPU" for n in cluster)
    cures = [f"resources.clients={room}", "resources.clients=auto"] if room else []
    cures += _smaller(resources, asked, cluster)
    return (
        f"asked for {asked} client actor{'s' * (asked > 1)} of {each} each; the cluster has room for {room} ({there}). "
        f"What would fit: {', or '.join(cures)}"
    )


def _smaller(resources: Resources, asked: int, cluster: Sequence[Node]) -> list[str]:
    """The largest shares with which `asked` actors fit, as one setting; none if no share would do."""
    without = _largest(replace(resources, gpus_per_client=0.0), "cpus_per_client", asked, cluster)
    if without is None:
        return []
    fitting = replace(resources, cpus_per_client=without.cpus_per_client)
    fitting = _largest(fitting, "gpus_per_client", asked, cluster) or without
    kinds = [kind for kind in ("cpus_per_client", "gpus_per_client") if vars(fitting)[kind] != vars(resources)[kind]]
    return [" ".join(f"resources.{kind}={vars(fitting)[kind]:g}" for kind in kinds)]


def _largest(resources: Resources, kind: str, asked: int, cluster: Sequence[Node]) -> Resources | None:
    now: float = vars(resources)[kind]
    whole = range(math.ceil(now) - 1, 0, -1)
    parts = (math.floor(10_000 / n) / 10_000 for n in range(2, asked + 1))  # rounded down: fits as it is shown
    shares: tuple[Any, ...] = (now, *whole, *parts)
    tried = (replace(resources, **{kind: share}) for share in shares if share <= now)
    return next((r for r in tried if sum(node.room(r) for node in cluster) >= asked), None)
