"""The specification of a search: what all its trials share, and the configuration of each federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray

from raysim.config.merge import merge
from raysim.config.resolve import resolve
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.distributed import node_probe
from raysim.search.objectives import Objective
from raysim.search.options import ComparedRound, FailedFederations, SchedulerName
from raysim.search.schedulers import SCHEDULERS
from raysim.search.space import Space, Values
from raysim.storage.run_directory import SEARCH_FILE


@dataclass(frozen=True)
class FederationVariant:
    """One federation of a trial: its seed, the site that is held out of training, and the fold of the test rows."""

    seed: int
    holdout: str | None = None
    fold: int | None = None


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """The data that all trials of a search share. It is sent to every trial process."""

    out: Path
    base: Mapping[str, Any]  # the keys of the config file and the command line, and the fixed keys of the space
    space: Space
    variants: tuple[FederationVariant, ...]
    objectives: tuple[Objective, ...]
    better: Mapping[str, Literal["higher", "lower"]]  # the direction of each of the task's metrics
    rounds: int
    folds: int | None = None
    compared_round: ComparedRound = "last"
    trial_count: int = 0
    scheduler: SchedulerName = "fifo"
    failed_federations: FailedFederations = "fail"
    backend: Literal["local", "ray"] = "local"
    session: str = ""  # id of the driving process: a trial restarted in the same session has reported rounds already
    task: Task | None = None  # the built task of `base`
    task_config: Any = None  # the configuration of `task`
    cwd: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # versions of the packages of the command
    data_paths: Sequence[str] = ()  # the paths that every node must be able to read

    def node_incompatibility(self) -> str:
        """The reason why this node cannot run trials; empty if it can. The node may have joined after the start."""
        if not (self.out / SEARCH_FILE).exists():
            here = ray.util.get_node_ip_address()
            return unfit_node(f"{here} cannot read {self.out}; use an --out in a folder that all nodes share")
        reason = node_probe.incompatibility(self.versions, self.data_paths) or self._missing_modules()
        return reason and unfit_node(f"{ray.util.get_node_ip_address()} {reason}")

    def _missing_modules(self) -> str:
        """The task or algorithm that this node cannot import, as a reason; empty if none."""
        try:
            for name in self.space.algorithm_names or (None,):
                resolve(self.space.apply(self.base, {"algorithm": name} if name else {}))
        except ConfigError as error:
            return f"lacks the task or an algorithm of the search: {error}; copy it there, where Python finds it"
        return ""

    def config(self, values: Values, variant: FederationVariant) -> RunConfig:
        """The configuration of a trial's federation; a held-out site is its only outside site."""
        values = {key: value for key, value in values.items() if key != "holdout"}
        metric = self.metric if variant.holdout is None else None
        keys = merge(self.space.apply(self.base, values), {"backend": self.backend, "metric": metric})
        if SCHEDULERS[self.scheduler].resumes_any_round:
            keys["checkpoint_every"] = 1
        if "seed" not in values:
            keys["seed"] = variant.seed
        config = resolve(keys)
        if variant.holdout is None and variant.fold is None:
            return config
        data = config.task.data
        if variant.fold is not None:
            data = replace(data, folds=self.folds, fold=variant.fold)
        if variant.holdout is not None:
            # The outside sites of `base` are excluded: a trial is evaluated on its held-out site only.
            data = replace(data, outside=(variant.holdout,), exclude_sites=(*data.exclude_sites, *data.outside))
        return replace(config, task=replace(config.task, data=data))

    @property
    def metric(self) -> str | None:
        """The key `metric` of the trials, which chooses their best rounds: that of the first objective with a score."""
        stems = (each.row_column.rpartition("/")[0] for each in self.objectives)
        return next((stem for stem in stems if stem), None)

    def variants_of(self, values: Values) -> dict[str, FederationVariant]:
        """The federations of a trial by name; a single federation has an empty name."""
        variants = self.variants
        if "holdout" in values:
            variants = tuple(replace(variant, holdout=values["holdout"]) for variant in variants)
        if len(variants) == 1:
            return {"": variants[0]}
        return {_variant_name(variant, variants): variant for variant in variants}


def unfit_node(reason: str) -> str:
    """The cause of a failure that the node causes, not the trial. It ends the search: other trials would fail too."""
    return f"a node cannot run trials: {reason}"


def _variant_name(variant: FederationVariant, variants: tuple[FederationVariant, ...]) -> str:
    parts = []
    if len({other.seed for other in variants}) > 1:
        parts.append(f"seed-{variant.seed}")
    if variant.holdout is not None:
        parts.append(f"without-{variant.holdout}")
    if variant.fold is not None:
        parts.append(f"fold-{variant.fold}")
    return "-".join(parts)
