"""The keys of a run as frozen dataclasses, with their limits and help texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True, kw_only=True)
class SiteResources:
    """What the client actor of one site gets, which then plays no other; what is not given is as for all."""

    gpus: Annotated[float | None, Ge(0), "GPUs of its client actor"] = None
    cpus: Annotated[float | None, Gt(0), "CPUs of its client actor, and its torch threads"] = None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each client actor gets, and how many there are."""

    gpus_per_client: Annotated[float, Ge(0), "GPUs of a client actor; a fraction shares one"] = 0.0
    cpus_per_client: Annotated[float, Gt(0), "CPUs of a client actor, and its torch threads"] = 1.0
    client_actors: Annotated[
        Literal["auto", "per_site"] | Annotated[int, Gt(0)],
        "client actors: as many as fit up to one per site, one per site, or a number",
    ] = "auto"
    sites: Annotated[
        Mapping[str, SiteResources],
        "sites with a client actor of their own, beside those: {site-02: {gpus: 0.5, cpus: 2}}",
    ] = field(default_factory=dict)

    def of(self, site: str) -> tuple[float, float]:
        """CPUs and GPUs of the client actor that plays `site`."""
        own = self.sites.get(site, SiteResources())
        cpus = self.cpus_per_client if own.cpus is None else own.cpus
        return cpus, self.gpus_per_client if own.gpus is None else own.gpus


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Which sites a round asks, and how many of them are there."""

    size: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0)],
        "sites of a round: a fraction of the inside sites (1.0 is all), or a whole number; cohort=0.5 is short for it",
    ] = 1.0
    dropout: Annotated[
        float, Ge(0), Lt(1), "chance that a site drawn for a round is not there, drawn by the seed; one always is"
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One federation."""

    task: Annotated[Any, "what is learned: `raysim list tasks`"]
    algorithm: Annotated[Any, "how it is learned: `raysim list algorithms`"]
    rounds: Annotated[int, Gt(0), "rounds of the run; schedules follow this number"] = 20
    cohort: Annotated[Cohort, "the sites of a round"] = field(default_factory=Cohort)
    min_replies: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0), Le(1)],
        "how many sites must answer a call: a fraction (1.0 is all), or a whole number; the others are left out",
    ] = 1.0
    site_timeout_s: Annotated[
        float, Gt(0), "seconds that a site may take for a call before its actor is taken for lost; it has three tries"
    ] = 21_600.0
    seed: Annotated[int, Ge(0), "seed of everything random but the data's own choices (task.data.seed)"] = 0
    evaluate_every: Annotated[int, Gt(0), "rounds between two evaluations; the last round always has one"] = 1
    checkpoint_every: Annotated[int, Gt(0), "rounds between two checkpoints; the last round always has one"] = 1
    metric: Annotated[
        str | None, "the metric to show and to judge by, e.g. inside/val/dice; the task's first where not given"
    ] = None
    chaos: Annotated[
        str | None,
        "trouble to make, e.g. 'kill client@3; kill node@5; slow site-02 x4; drop 0.1'; none where not given",
    ] = None
    backend: Annotated[Literal["ray", "local"], "where sites run: on Ray, or in this process, one by one"] = "ray"
    ray_address: Annotated[
        str | None, "Ray cluster to join (auto, or HOST:PORT); where not given, RAY_ADDRESS, else a Ray of its own"
    ] = None
    resources: Annotated[Resources, "what each client actor gets"] = field(default_factory=Resources)
