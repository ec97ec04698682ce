"""The configuration of a run: frozen dataclasses with limits and help texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

TrackerName = Literal["mlflow", "wandb"]


@dataclass(frozen=True, kw_only=True)
class SiteResources:
    """The resources of a site's dedicated client actor; None is the value of the other client actors."""

    gpus: Annotated[float | None, Ge(0), "GPUs of the site's client actor"] = None
    cpus: Annotated[float | None, Gt(0), "CPUs of the site's client actor; also the number of its torch threads"] = None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of each client actor, and the number of client actors."""

    gpus_per_client: Annotated[float, Ge(0), "GPUs of a client actor; with a fraction, actors share a GPU"] = 0.0
    cpus_per_client: Annotated[float, Gt(0), "CPUs of a client actor; also the number of its torch threads"] = 1.0
    client_actors: Annotated[
        Literal["auto", "per_site"] | Annotated[int, Gt(0)],
        "number of client actors; auto: as many as fit, at most one per site; per_site: one per site",
    ] = "auto"
    batch_sites: Annotated[
        Literal["auto"] | Annotated[int, Gt(0)],
        "sites whose networks train in one batch, as one operation for all; 1: one by one; auto: up to 16 if examples "
        "are small, where it is faster",
    ] = "auto"
    sites: Annotated[
        Mapping[str, SiteResources],
        "sites that have an additional, dedicated client actor: {site-02: {gpus: 0.5, cpus: 2}}",
    ] = field(default_factory=dict)

    def of(self, site: str) -> tuple[float, float]:
        """CPUs and GPUs of the client actor that runs `site`."""
        site_resources = self.sites.get(site, SiteResources())
        cpus = self.cpus_per_client if site_resources.cpus is None else site_resources.cpus
        return cpus, self.gpus_per_client if site_resources.gpus is None else site_resources.gpus


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The sampling of sites in each round."""

    size: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0)],
        "sites in a round: a fraction of the inside sites (1.0 is all), or a whole number; short form: cohort=0.5",
    ] = 1.0
    dropout: Annotated[
        float, Ge(0), Lt(1), "probability that a sampled site is offline in a round; at least one stays online"
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When a run ends early because its validation score does not improve."""

    patience: Annotated[
        int, Gt(0), "the run ends after this number of evaluations without a gain; short form: early_stopping=5"
    ] = 5
    min_gain: Annotated[float, Ge(0), "only a larger improvement is a gain; in the unit of the metric"] = 0.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one federation."""

    task: Annotated[Any, "data, network, loss and metrics; see `raysim list tasks`"]
    algorithm: Annotated[Any, "method of federated learning; see `raysim list algorithms`"]
    rounds: Annotated[int, Gt(0), "number of rounds; learning-rate schedules depend on it"] = 20
    cohort: Annotated[Cohort, "the sites of a round"] = field(default_factory=Cohort)
    min_replies: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0), Le(1)],
        "sites of the cohort that must reply: a fraction (1.0 is all), or a whole number; failed sites are left out",
    ] = 1.0
    site_timeout_s: Annotated[
        float, Gt(0), "seconds that a call may take at a site before its actor is replaced; a call has three attempts"
    ] = 21_600.0
    seed: Annotated[int, Ge(0), "seed of all randomness, except in the data (task.data.seed)"] = 0
    evaluate_every: Annotated[int, Gt(0), "evaluate the sites every N rounds, and after the last round"] = 1
    checkpoint_every: Annotated[int, Gt(0), "write a checkpoint every N rounds, and after the last round"] = 1
    metric: Annotated[str | None, "main metric, e.g. inside/val/dice; by default the first metric of the task"] = None
    anonymous_cases: Annotated[bool, "write hashes instead of the names of images and patients to cases.parquet"] = (
        False
    )
    pictures: Annotated[bool, "write pictures of cases to pictures/ and report.html; they show images of patients"] = (
        True
    )
    tracker: Annotated[
        TrackerName | None,
        "experiment tracker that also records the run: mlflow (MLFLOW_TRACKING_URI) or wandb (WANDB_MODE, ...)",
    ] = None
    early_stopping: Annotated[
        EarlyStopping | None, "end the run when `metric` on val cases stops improving; by default all rounds run"
    ] = None
    chaos: Annotated[
        str | None,
        "faults to inject: 'kill client@3' or 'kill node@3' in round 3, 'slow site-02 x4' (four times slower), "
        "'drop 0.1' (a tenth of the replies); separate several by ';'",
    ] = None
    backend: Annotated[
        Literal["ray", "local"], "where sites run; ray: on Ray, in parallel; local: in this process, one after another"
    ] = "ray"
    ray_address: Annotated[
        str | None, "Ray cluster to join (auto, or HOST:PORT); by default RAY_ADDRESS, else a local Ray is started"
    ] = None
    resources: Annotated[Resources, "resources of each client actor"] = field(default_factory=Resources)
