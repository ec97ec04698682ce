"""What fits where: how many client actors a cluster has room for, and what to say if it is too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    cures = []
    if room:
        cures += [f"resources.clients={room}", "resources.clients=auto"]
    cpus, gpus = sum(n.cpus for n in cluster), sum(n.gpus for n in cluster)
    if resources.gpus_per_client > 0:
        share = gpus / asked if gpus else 0.0
        cures.append(f"resources.gpus_per_client={_round_share(share):g}")
    if cpus / asked < resources.cpus_per_client:
        cures.append(f"resources.cpus_per_client={_round_share(cpus / asked):g}")
    return (
        f"asked for {asked} client actor{'s' * (asked > 1)} of {each} each; the cluster has room for {room} ({there}). "
        f"What would fit: {', or '.join(cures)}"
    )


def _round_share(share: float) -> float:
    """The largest fraction not above `share` that divides one device evenly."""
    if share >= 1 or share <= 0:
        return float(int(share))
    parts = int(1 / share)
    return 1 / (parts if 1 / parts <= share else parts + 1)
