"""Runs that continue another run from its last checkpoint, and the copy of initial weights that a run keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from raysim.config.introspection import format_setting
from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError, RunError
from raysim.core.formatting import pluralize, quote_path
from raysim.core.network_factories import initial_weights
from raysim.core.registry import classes_of
from raysim.storage import checkpoint
from raysim.storage.model_files import write_model
from raysim.storage.run_directory import (
    BEST,
    CHECKPOINTS,
    FAILURES_FILE,
    INITIAL_WEIGHTS_FILE,
    LOG_FILE,
    lock_owner,
    read_summary,
)

# The keys that may differ from those of the run that is continued: they do not change the result of a round.
FREE_KEYS = (
    *("rounds", "backend", "ray_address", "resources", "site_timeout_s", "evaluate_every", "checkpoint_every"),
    *("early_stopping", "chaos", "pictures", "anonymous_cases", "tracker"),
)


@dataclass(frozen=True)
class Continuation:
    """The run that is continued, the round of its last checkpoint, and its difference from a longer run.

    difference: the differences from a run that has all rounds from the start; empty without a difference.
    """

    run: Path
    after_round: int
    difference: str

    def describe(self, rounds: int) -> str:
        """One line for the start of the run."""
        compared = f"that of a run of {pluralize(rounds, 'round')} from the start"
        result = f"differs from {compared}: {self.difference}" if self.difference else f"equals {compared}"
        return f"continuing {self.run} after round {self.after_round}; the result {result}"

    def to_mapping(self) -> dict[str, Any]:
        """The entry of summary.json."""
        return {"run": str(self.run), "after_round": self.after_round, "difference": self.difference or None}


def plan_continuation(config: RunConfig, old: RunConfig, run: Path) -> tuple[RunConfig, Continuation]:
    """The configuration of a run that continues `run`, whose configuration is `old`, and the continuation.

    Stages keep the number of rounds that they have in `run`. Raises ConfigError for another federation, for a number of
    rounds that is not larger, and for a run without a checkpoint.
    """
    _check_keys(config, old, run)
    _check_ended(config, old, run)
    number = _last_checkpoint(config, run)
    keep_stages = getattr(config.algorithm, "keep_stages", lambda before, after: config.algorithm)
    algorithm = keep_stages(old.rounds, config.rounds)
    reasons = list(_uses_of_rounds(algorithm, "algorithm"))
    if algorithm != config.algorithm:
        reasons.insert(0, f"the stages of the method are as long as in a run of {pluralize(old.rounds, 'round')}")
    if number % config.evaluate_every:
        reasons.append(f"round {number} was evaluated too, because it was the last one")
    return replace(config, algorithm=algorithm), Continuation(run, number, "; ".join(reasons))


def _check_keys(config: RunConfig, old: RunConfig, run: Path) -> None:
    new_values, old_values = (to_mapping(each) for each in (config, old))
    for field in fields(RunConfig):
        if field.name in FREE_KEYS:
            continue
        for key, new, before in _differences(field.name, new_values[field.name], old_values[field.name]):
            raise ConfigError(
                f"--continue: {format_setting(key, new)} differs from the run {run}, which has {before!r}; remove "
                f"{key}, or start a new run. Keys that may differ: {', '.join(FREE_KEYS)}"
            )


def _differences(key: str, new: Any, before: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each dotted key with different values, and both values."""
    if isinstance(new, Mapping) and isinstance(before, Mapping):
        for name in dict.fromkeys((*new, *before)):
            yield from _differences(f"{key}.{name}", new.get(name), before.get(name))
    elif new != before:
        yield key, new, before


def _check_ended(config: RunConfig, old: RunConfig, run: Path) -> None:
    if lock_owner(run) is not None:
        raise ConfigError(f"--continue {run}: the run is still active; wait until it ends, or stop it first")
    if config.rounds <= old.rounds:
        raise ConfigError(
            f"--continue: rounds={config.rounds} is not more than the {old.rounds} rounds of {run}; set for example "
            f"rounds={2 * old.rounds}. To complete an interrupted run: raysim resume {quote_path(run)}"
        )
    if config.early_stopping and "early_stopping" in read_summary(run) and config.early_stopping == old.early_stopping:
        raise ConfigError(
            f"--continue: early stopping has ended the run {run}, and would end it again; set early_stopping=null or a "
            "larger early_stopping.patience"
        )


def _last_checkpoint(config: RunConfig, run: Path) -> int:
    """The round of the newest checkpoint that is intact."""
    reason = "it has no checkpoint"
    for path in checkpoint.newest_first(run / CHECKPOINTS):
        try:
            return checkpoint.read(path, trusted=[cls.__module__ for cls in classes_of(config.algorithm)]).number
        except RunError as error:
            reason = str(error)
    raise ConfigError(f"--continue {run}: {reason}; start a new run")


def _uses_of_rounds(algorithm: Any, key: str) -> Iterator[str]:
    """The parts of a method that depend on the number of rounds of the run."""
    schedule = getattr(algorithm, "schedule", "constant")
    if schedule != "constant":
        yield f"{key}.schedule={schedule} has other learning rates in a longer run"
    if reason := getattr(algorithm, "uses_rounds", ""):
        yield reason
    if (finetune := getattr(algorithm, "finetune", None)) is not None:
        yield from _uses_of_rounds(finetune, f"{key}.finetune")


def copy_records(run: Path, directory: Path) -> None:
    """Copy log, failures, TensorBoard events and checkpoints of `run` to the new `directory`."""
    for name in (LOG_FILE, FAILURES_FILE):
        with suppress(FileNotFoundError):
            shutil.copyfile(run / name, directory / name)
    with suppress(FileNotFoundError):
        shutil.copytree(run / "tensorboard", directory / "tensorboard")
    for folder in (CHECKPOINTS, BEST):
        for path in reversed(list(checkpoint.newest_first(run / folder))):
            (directory / folder).mkdir(exist_ok=True)
            checkpoint.copy(path, directory / folder)


def keep_initial_weights(task: Task, directory: Path) -> None:
    """Write the initial weights of the task, if it has any, to `directory`, so that the run can be resumed."""
    if initial := initial_weights(task):
        write_model(directory / INITIAL_WEIGHTS_FILE, initial.loaded)


def with_kept_weights(task_config: Any, directory: Path) -> Any:
    """The configuration of the task with the initial weights that the run in `directory` has kept, if it has any."""
    path = directory / INITIAL_WEIGHTS_FILE
    if not path.is_file():
        return task_config
    return replace(task_config, network={**task_config.network, "weights": str(path)})
