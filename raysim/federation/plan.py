"""The plan of a run: its configuration, its task, its folder, checked and ready."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysim.config.schema import RunConfig
from raysim.core.contracts import EVALUATED_SPLITS, Algorithm, Task
from raysim.core.errors import ConfigError
from raysim.core.fault_injection import FaultPlan, parse_faults
from raysim.core.registry import name_of
from raysim.distributed import node_probe
from raysim.distributed.diagnostics import data_paths
from raysim.federation.validation import (
    check_algorithm,
    check_cohort,
    check_disk,
    check_last_batch,
    check_sites,
    check_training,
    model_bytes,
)
from raysim.reporting.console import RunConsole


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs, checked and ready."""

    algorithm: Algorithm[Any]
    algorithm_name: str
    task: Task
    out: Path
    rounds: int
    cohort: float | int
    seed: int
    evaluate_every: int
    checkpoint_every: int
    metric: str
    model_bytes: int = 0  # of the network
    dropout: float = 0.0
    min_replies: float | int = 1.0
    site_timeout_s: float = math.inf
    chaos: FaultPlan = field(default_factory=FaultPlan)
    resume: bool = False  # go on from the newest checkpoint in `out`
    versions: Mapping[str, str] = field(default_factory=dict)  # of the command's packages, which nodes are to have
    data_paths: Sequence[str] = ()  # what nodes are to be able to read


def chosen_metric(task: Task, asked: str | None) -> str:
    """The `role/split/metric` to show and judge by. Raises ConfigError for one that no site can have."""
    possible = [
        f"{role}/{split}/{metric}"
        for role, sites in (("inside", task.inside), ("outside", task.outside))
        for split in EVALUATED_SPLITS
        if any(task.sizes[site].get(split, 0) for site in sites)
        for metric in task.score.better
    ]
    if asked is None:
        if not possible:
            raise ConfigError("no site has a val or a test row: there is nothing to judge the run by")
        return possible[0]
    if asked.removesuffix("@global") not in possible:
        raise ConfigError(f"metric={asked!r}: expected one of {', '.join(possible) or 'none'}, or one with @global")
    return asked


def build_task_and_plan(config: RunConfig, folder: Path, display: RunConsole) -> Plan:
    """Open the data and check all that can be checked before anything starts."""
    parse_run_faults(config)
    with display.preparing() as progress:
        task = config.task.build(progress)
    return build_plan(config, task, folder)


def parse_run_faults(config: RunConfig) -> FaultPlan:
    chaos = parse_faults(config.chaos)
    if chaos.kills and config.backend == "local":
        raise ConfigError(f"chaos={config.chaos!r}: backend=local has no actor or node to kill; run on Ray")
    return chaos


def build_plan(config: RunConfig, task: Task, folder: Path) -> Plan:
    """The run of `config` on its `task`, which is built, into `folder`. Raises ConfigError for what cannot be."""
    chaos = parse_run_faults(config)
    chaos.check((*task.inside, *task.outside), config.rounds)
    if chaos.drop and config.min_replies == 1.0:
        raise ConfigError(
            f"chaos drops replies, and min_replies={config.min_replies} has every site answer: the first would end the "
            "run; give min_replies=0.5, say"
        )
    check_training(task)
    check_last_batch(task)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)
    check_cohort(task, config.cohort.size)
    check_sites(task, config.resources.sites)
    model = model_bytes(task)
    if not any((folder / "checkpoints").glob("round_*")):  # else the room is taken already
        check_disk(folder, model)
    return Plan(
        algorithm=config.algorithm,
        algorithm_name=name_of(type(config.algorithm)),
        task=task,
        out=folder,
        rounds=config.rounds,
        cohort=config.cohort.size,
        model_bytes=model,
        dropout=config.cohort.dropout,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        metric=chosen_metric(task, config.metric),
        min_replies=config.min_replies,
        site_timeout_s=config.site_timeout_s,
        chaos=chaos,
        versions=node_probe.versions(),
        data_paths=data_paths(task, config.task)[0],
    )
