"""The plan of a run: its configuration, its task, its run directory, and what follows from them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from raysim.config.schema import RunConfig
from raysim.core.contracts import EVALUATED_SPLITS, Task, TaskConfig
from raysim.core.errors import ConfigError
from raysim.core.events import EventCallback, Message, Notice, Progress
from raysim.core.fault_injection import FaultPlan, parse_faults
from raysim.core.model import weights
from raysim.core.registry import name_of
from raysim.data.required_paths import required_paths


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs. It travels to the nodes; the data do not, for they are opened at the sites."""

    config: RunConfig
    task: Task
    directory: Path
    resume: bool = False  # continue from the newest checkpoint in `directory`
    versions: Mapping[str, str] = field(default_factory=dict)  # packages of the command, which nodes must have too

    @property
    def algorithm_name(self) -> str:
        return name_of(type(self.config.algorithm))

    @property
    def title(self) -> str:
        """Algorithm and task in one line, for status tables."""
        return f"{self.algorithm_name} on {self.task.name}"

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, inside and outside."""
        return (*self.task.inside, *self.task.outside)

    @cached_property
    def metric(self) -> str:
        """The `role/split/metric` that the run is judged by. Raises ConfigError as `chosen_metric` does."""
        return chosen_metric(self.task, self.config.metric)

    @cached_property
    def faults(self) -> FaultPlan:
        """The faults to inject. Raises ConfigError as `parse_run_faults` does."""
        return parse_run_faults(self.config)

    @cached_property
    def model_bytes(self) -> int:
        """The bytes of the task's network as a model."""
        return model_bytes(self.task)

    @cached_property
    def data_paths(self) -> Sequence[str]:
        """The files and folders that every node must be able to read."""
        return required_paths(self.task, self.config.task)[0]


def build_plan(
    config: RunConfig,
    directory: Path,
    *,
    task: Task | None = None,
    resume: bool = False,
    versions: Mapping[str, str] | None = None,
    emit: EventCallback | None = None,
) -> Plan:
    """The plan of `config`, not yet validated. Opens the task's data, unless `task` is built already.

    `emit` gets the progress of the data, and their warnings, which are Python's own without it.
    Raises ConfigError for faults that cannot be parsed and for data that cannot be used.
    """
    parse_run_faults(config)  # before the data: their preparation may take hours
    if task is None:
        task = config.task.build(None) if emit is None else prepare_task(config.task, emit)
    return Plan(config=config, task=task, directory=directory, resume=resume, versions=versions or {})


def prepare_task(config: TaskConfig, emit: EventCallback) -> Task:
    """The task of `config`, its data prepared. `emit` gets the progress, and a notice of each warning."""
    emit(Message("preparing the data"))
    with warnings.catch_warnings(record=True) as caught:
        task = config.build(lambda done, total: emit(Progress(phase="preparing cases", done=done, total=total)))
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            emit(Notice(str(warning.message)))
    return task


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


def parse_run_faults(config: RunConfig) -> FaultPlan:
    """The faults of `config.chaos`. Raises ConfigError if they cannot be parsed, or the backend has no actors."""
    faults = parse_faults(config.chaos)
    if faults.kills and config.backend == "local":
        raise ConfigError(f"chaos={config.chaos!r}: backend=local has no actor or node to kill; run on Ray")
    return faults


def model_bytes(task: Task) -> int:
    """The bytes of the task's network as a model."""
    return weights(task.network()).nbytes
