"""Finds the runs in folders, and reads their configuration and summary. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.config.merge import dotted_keys
from raysim.config.yaml_loader import load_written_yaml
from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize, quote_path
from raysim.storage.run_directory import CASES_FILE, CONFIG_FILE, LOG_FILE, SEARCH_FILE, SUMMARY_FILE, read_summary


@dataclass(frozen=True)
class RunRecord:
    """A run: folder, configuration by dotted key, and content of summary.json (empty before the end of the run)."""

    path: Path
    keys: Mapping[str, Any]
    summary: Mapping[str, Any]
    is_trial: bool = False

    @property
    def status(self) -> str:
        """`done`, `interrupted` or `failed`; `unfinished` without a summary."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def is_evaluation(self) -> bool:
        """Whether this is the evaluation of a finished run on other data."""
        return "run" in self.summary

    @property
    def algorithm(self) -> str:
        """The name of the algorithm."""
        return str(self.keys.get("algorithm.name", "-"))

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.keys.get("task.name", "-"))


def find_runs(folders: Sequence[Path], *, trials: bool = True) -> list[RunRecord]:
    """The runs in `folders` and below them, each once, in the order of the arguments, then by path.

    trials: whether those of searches are included. Raises ConfigError for a folder that does not exist.
    """
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is not a folder; give the folder of a run or of a search, or a folder with runs"
            )
        for path, search in _run_folders(folder):
            if trials or search is None:
                found.setdefault(path.resolve(), read_run(path, is_trial=search is not None))
    return [*found.values()]


def find_searches(folder: Path) -> list[Path]:
    """The folders of the searches in `folder`."""
    return list(dict.fromkeys(search for _, search in _run_folders(folder) if search is not None))


def _run_folders(folder: Path, search: Path | None = None) -> Iterator[tuple[Path, Path | None]]:
    """Each run in `folder` or below it, with the search that it belongs to."""
    if (folder / CONFIG_FILE).is_file() and ((folder / LOG_FILE).exists() or (folder / SUMMARY_FILE).exists()):
        yield folder, search
        return
    if (folder / SEARCH_FILE).is_file():
        search = folder
    for child in sorted(folder.iterdir()):
        # In a folder of several users, some runs may be private.
        if child.is_dir() and not child.is_symlink() and os.access(child, os.R_OK | os.X_OK):
            yield from _run_folders(child, search)


def read_run(path: Path, is_trial: bool = False) -> RunRecord:
    """The record of the run in `path`. Raises ConfigError for a config.yaml that cannot be read."""
    file = path / CONFIG_FILE
    try:
        config = load_written_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}; remove this folder, or give other folders") from error
    return RunRecord(path, dict(dotted_keys(config)), read_summary(path), is_trial)


def comparable_runs(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """The finished runs of one task in `folders`, and notes on what is left out.

    Unfinished trials of searches are left out, and evaluations of runs, unless there are only evaluations or `folders`
    names them. Raises ConfigError if a folder has no run, if a run has not finished or has no values by case, or if
    tasks differ.
    """
    found, given = find_runs(folders), {folder.resolve() for folder in folders}
    of_training = [run for run in found if not run.is_evaluation or run.path.resolve() in given] or found
    done = [run for run in of_training if run.status == "done" or not run.is_trial]
    if not done:
        raise ConfigError(f"{', '.join(map(str, folders))}: no finished run; give folders of finished runs or searches")
    for folder in folders:
        if next(_run_folders(folder), None) is None:
            raise ConfigError(f"{folder} has no run; give folders of finished runs or searches")
    for run in done:
        _check_finished(run)
        if run.task != done[0].task:
            raise ConfigError(
                f"{done[0].path} is a run of task={done[0].task}, {run.path} of task={run.task}; give runs of one task"
            )
    counts = {
        "evaluation": (len(found) - len(of_training), "of runs: give only the folders of evaluations to compare these"),
        "trial": (len(of_training) - len(done), "of a search that did not finish"),
    }
    return done, [f"left out: {pluralize(count, what)} {why}" for what, (count, why) in counts.items() if count]


def _check_finished(run: RunRecord) -> None:
    if run.status == "unfinished":
        raise ConfigError(f"{run.path} has not ended; wait until it ends, or give the other runs")
    if run.status != "done":
        raise ConfigError(
            f"{run.path} is {run.status}, not done; to continue it: raysim resume {quote_path(run.path)}; or give the "
            "other runs"
        )
    if not (run.path / CASES_FILE).is_file():
        raise ConfigError(
            f"{run.path} has no {CASES_FILE}, because its task has no values by case; give runs of segmentation, "
            "classification, tabular or synthetic"
        )
