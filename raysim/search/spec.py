"""A search as values: what all its trials share, and the configuration of each."""

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
from raysim.search.space import Space

Scheduler = Literal["fifo", "asha", "hyperband", "pbt", "median"]


@dataclass(frozen=True)
class FederationVariant:
    """One federation of a trial: its seed, and the site that it is not to train on."""

    seed: int
    holdout: str | None = None


UNFIT_NODE = "a node cannot play trials"  # what ends a search: it would take one after the other, and fail them all


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """All that the trials of a search share."""

    out: Path
    base: Mapping[str, Any]  # what file and words give, with what the space fixes
    space: Space
    variants: tuple[FederationVariant, ...]
    objectives: tuple[Objective, ...]
    better: Mapping[str, Literal["higher", "lower"]]  # of the task's metrics
    rounds: int
    scheduler: Scheduler = "fifo"
    backend: Literal["local", "ray"] = "local"
    session: str = ""  # of the process that drives it: a trial that starts again in the same one was told before
    task: Task | None = None  # that of `base`, built
    task_config: Any = None  # its configuration
    cwd: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # of the command's packages
    data_paths: Sequence[str] = ()  # what nodes are to be able to read

    def unfit(self) -> str:
        """What keeps this node, which may have come since the search began, from playing trials; empty: nothing."""
        if not (self.out / "search.yaml").exists():
            here = ray.util.get_node_ip_address()
            return f"{UNFIT_NODE}: {self.out} cannot be seen from {here}; give an --out that all nodes share"
        wrong = node_probe.incompatibility(self.versions, self.data_paths) or self._unknown()
        return wrong and f"{UNFIT_NODE}: {ray.util.get_node_ip_address()} {wrong}"

    def _unknown(self) -> str:
        """What of the task and the algorithms this node does not find by its name; empty if nothing."""
        try:
            for name in self.space.names or (None,):
                resolve(self.space.given(self.base, {"algorithm": name} if name else {}))
        except ConfigError as error:
            return f"has not all that the search names: {error}; put it there, where Python finds it"
        return ""

    def config(self, values: Mapping[str, Any], cell: FederationVariant) -> RunConfig:
        """The run of a trial's federation; a held-out site is its one outside site."""
        values = {key: value for key, value in values.items() if key != "holdout"}
        given = merge(self.space.given(self.base, values), {"backend": self.backend, "metric": None})
        if self.scheduler in ("pbt", "hyperband", "median"):
            given["checkpoint_every"] = 1  # they hand over or pause a trial in any round, which goes on from there
        if "seed" not in values:
            given["seed"] = cell.seed
        config = resolve(given)
        if cell.holdout is None:
            return config
        data = config.task.data
        # Standing outside sites stay away: the trial is judged by the one that it holds out, and they by nobody yet.
        held = replace(data, outside=(cell.holdout,), exclude_sites=(*data.exclude_sites, *data.outside))
        return replace(config, task=replace(config.task, data=held))

    def variants_of(self, values: Mapping[str, Any]) -> dict[str, FederationVariant]:
        """The federations of a trial by name; there is but one, without a name, where nothing is repeated."""
        cells = self.variants
        if "holdout" in values:
            cells = tuple(replace(cell, holdout=values["holdout"]) for cell in cells)
        if len(cells) == 1:
            return {"": cells[0]}
        return {_name(cell, cells): cell for cell in cells}


def _name(cell: FederationVariant, cells: tuple[FederationVariant, ...]) -> str:
    parts = []
    if len({other.seed for other in cells}) > 1:
        parts.append(f"seed-{cell.seed}")
    if cell.holdout is not None:
        parts.append(f"without-{cell.holdout}")
    return "-".join(parts)
