"""The plan of a run: its configuration, its task, its run directory, and values derived from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raysim.config.schema import RunConfig
from raysim.core.contracts import EVALUATED_SPLITS, Task, TaskConfig
from raysim.core.errors import ConfigError
from raysim.core.events import EventCallback, Message, Notice, Progress
from raysim.core.fault_injection import FaultPlan, parse_faults
from raysim.core.model import weights
from raysim.core.network_factories import initial_weights, train_only
from raysim.core.registry import name_of
from raysim.data.required_paths import required_paths
from raysim.federation.continuation import Continuation, with_kept_weights
from raysim.tasks.lora import LoraNetwork

# Sites train in one batch by default if the examples of a batch have at most this many pixels together, and the network
# at most these bytes. Above, the operations of one site take most of the time, so stacking gains nothing on a CPU.
SMALL_BATCH = 16_384
SMALL_MODEL = 4 * 2**20
MAX_BATCH_SITES = 16
MIN_GROUPS = 4  # lowest number of groups, so that several client actors have work


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run needs. It is sent to the nodes, without the data: each site opens its data there."""

    config: RunConfig
    task: Task
    directory: Path
    resume: bool = False  # continue from the newest checkpoint in `directory`
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages in this process; nodes must have the same
    continuation: Continuation | None = None  # the run that this one continues; its records are copied at the start
    writes_models_and_pictures: bool = True  # whether models/ and pictures/ are written at the end of the run

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
        """The `role/split/metric` that the run is scored by. Raises ConfigError as `chosen_metric` does."""
        return chosen_metric(self.task, self.config.metric)

    @cached_property
    def selection(self) -> str | None:
        """The metric that chooses the best round, see `selection_metric`."""
        return selection_metric(self.task, self.metric)

    @property
    def compiled(self) -> bool:
        """Whether sites train compiled networks."""
        return bool(getattr(self.config.algorithm, "compile", False))

    @cached_property
    def batch_sites(self) -> int:
        """The number of sites that train in one batch. It depends on the task alone, so that results do too."""
        chosen = self.config.resources.batch_sites
        if chosen != "auto":
            return chosen
        gpu = any(self.config.resources.of(site)[1] for site in self.sites)
        pixels = math.prod(self.task.shape[1:]) * self.task.batch_size
        if gpu or self.compiled or len(self.task.shape) > 3 or pixels > SMALL_BATCH or self.model_bytes > SMALL_MODEL:
            return 1
        return max(1, min(MAX_BATCH_SITES, len(self.task.inside) // MIN_GROUPS))

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
    continuation: Continuation | None = None,
    versions: Mapping[str, str] | None = None,
    emit: EventCallback | None = None,
) -> Plan:
    """The plan of `config`, not yet validated. Opens the task's data, unless a built `task` is given.

    `emit` receives the progress of data preparation, and its warnings as notices. Without `emit` they remain Python
    warnings. Raises ConfigError for faults that cannot be parsed, data that cannot be used, and trained parameters that
    the network does not have.
    """
    parse_run_faults(config)  # first, because data preparation may take hours
    if task is None:
        task_config = with_kept_weights(config.task, continuation.run if continuation else directory)
        task = task_config.build(None) if emit is None else prepare_task(task_config, emit)
    task = train_only(task, _trained_patterns(config, task))
    return Plan(
        config=config,
        task=task,
        directory=directory,
        resume=resume or continuation is not None,
        versions=versions or {},
        continuation=continuation,
    )


def _trained_patterns(config: RunConfig, task: Task) -> tuple[str, ...] | None:
    """The field `trainable` of the algorithm. Raises ConfigError if adapters are added and the field is not set."""
    patterns: tuple[str, ...] | None = getattr(config.algorithm, "trainable", None)
    if patterns is None and isinstance(task.network, LoraNetwork):
        raise ConfigError(
            "task.network.lora needs the names of the parameters that are trained; add "
            "\"algorithm.trainable=['*lora_*']\", with the names of other layers, such as the last one"
        )
    return patterns


def prepare_task(config: TaskConfig, emit: EventCallback) -> Task:
    """The task of `config` with prepared data. `emit` receives progress and summary, and each warning as a notice."""
    emit(Message("preparing the data"))
    with warnings_as_notices(emit):
        task = config.build(lambda done, total: emit(Progress(phase="preparing cases", done=done, total=total)))
    if task.summary:
        emit(Message(task.summary))
    if initial := initial_weights(task):
        emit(Message(initial.report))
    return task


@contextmanager
def warnings_as_notices(emit: EventCallback | None) -> Iterator[None]:
    """Pass each user warning of the block to `emit` as a notice at its end; without `emit` they remain warnings."""
    if emit is None:
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # also those that another run in this process has caused
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            emit(Notice(str(warning.message)))


def possible_metrics(task: Task) -> list[str]:
    """Every `role/split/metric` that some site can have."""
    return [
        f"{role}/{split}/{metric}"
        for role, sites in (("inside", task.inside), ("outside", task.outside))
        for split in EVALUATED_SPLITS
        if any(task.sizes[site].get(split, 0) for site in sites)
        for metric in task.score.better
    ]


def chosen_metric(task: Task, requested: str | None) -> str:
    """The `role/split/metric` to show and to score the run by: `requested`, or by default the first possible one.

    Raises ConfigError for a metric that no site can have.
    """
    possible = possible_metrics(task)
    if requested is None:
        if not possible:
            raise ConfigError(
                "no site has val or test rows, so the run cannot be evaluated; give some rows the split val or test, "
                "or set task.data.val=0.2 (of a table)"
            )
        return possible[0]
    if requested.removesuffix("@global") not in possible:
        names = ", ".join(possible) or "none"
        raise ConfigError(f"metric={requested!r}: expected one of {names}, each also with the suffix @global")
    return requested


def selection_metric(task: Task, chosen: str) -> str | None:
    """The metric that chooses the best round: `chosen` on val cases, of inside sites if its own sites have none.

    None if the inside sites have no val cases either, because a test score is never used for the choice.
    """
    role, _, metric = chosen.split("/", 2)
    sites = {"inside": task.inside, "outside": task.outside}
    possible = (each for each in (role, "inside") if any(task.sizes[site].get("val", 0) for site in sites[each]))
    found = next(possible, None)
    return None if found is None else f"{found}/val/{metric}"


def how_to_add_val_cases(config: TaskConfig, task: Task, sites: Iterable[str]) -> str:
    """The cure in an error about `sites` without val cases."""
    from raysim.tasks.table_config import TableData  # here, because actors import this module and do not need pandas

    data: Any = getattr(config, "data", None)
    if not isinstance(data, TableData):
        return "set task.data.val=1 or more" if hasattr(data, "val") else "add val cases to the task"
    of_table = "give some of their rows the split val"
    if data.val is None and any(task.sizes[site].get("train", 0) > 1 for site in sites):
        return f"set task.data.val=0.2, a share of the training rows, or {of_table}"
    return of_table


def parse_run_faults(config: RunConfig) -> FaultPlan:
    """The faults of `config.chaos`. Raises ConfigError if they cannot be parsed, or the backend has no actors."""
    faults = parse_faults(config.chaos)
    if faults.kills and config.backend == "local":
        raise ConfigError(f"chaos={config.chaos!r}: backend=local has no actor or node to kill; use backend=ray")
    return faults


def model_bytes(task: Task) -> int:
    """The bytes of the task's network as a model."""
    return weights(task.network()).nbytes
