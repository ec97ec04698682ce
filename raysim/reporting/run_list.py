"""Lists the runs in a folder: a table for `raysim runs`, and the page index.html in the folder of new runs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from raysim.config.yaml_loader import load_written_yaml
from raysim.core.errors import ConfigError
from raysim.core.formatting import format_score
from raysim.reporting.finished_runs import RunRecord, find_runs, find_searches
from raysim.reporting.page import environment, page_style, write_page
from raysim.reporting.run_groups import ALGORITHM, FOLD, SEED, differing_keys, group_name
from raysim.storage.run_directory import CONFIG_FILE, SEARCH_FILE, lock_owner, reading_runs, runs_directory

TEMPLATE = Path(__file__).with_name("run_list.html.j2")
INDEX_FILE, REPORT_FILE = "index.html", "report.html"
BEST_FILE = "best.yaml"  # of a search
MAX_RUNS = 300  # on the page; older runs are left out, so that writing it stays fast


@dataclass(frozen=True)
class RunRow:
    """A run or a search in the list. differs: the values that differ from those of other runs of the same task."""

    path: str  # relative to the listed folder
    algorithm: str
    task: str
    differs: str
    score: str
    date: str
    state: str
    report: str | None = None  # the relative URL of report.html, if it exists


def list_runs(folder: Path) -> list[RunRow]:
    """The runs and searches in `folder`, the newest first; trials of searches are left out.

    Raises ConfigError if `folder` does not exist.
    """
    with reading_runs([folder]):
        return _list_runs(folder)


def _list_runs(folder: Path) -> list[RunRow]:
    runs = find_runs([folder], trials=False)
    tasks = {task: [run for run in runs if run.task == task] for task in {run.task for run in runs}}
    keys = {task: [SEED, FOLD, *differing_keys(of_task)] for task, of_task in tasks.items()}
    rows = [(_started(run.path / CONFIG_FILE), _row(folder, run, keys[run.task], tasks[run.task])) for run in runs]
    rows += [(_started(path / SEARCH_FILE), _search_row(folder, path)) for path in find_searches(folder)]
    return [row for _, row in sorted(rows, key=lambda each: (each[0], each[1].path), reverse=True)]


def _started(file: Path) -> float:
    """The time at which a file was written, the start of a run or a search; 0 if the file no longer exists."""
    with suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _row(folder: Path, run: RunRecord, keys: Sequence[str], runs: Sequence[RunRecord]) -> RunRow:
    differs = group_name(run, [key for key in keys if key != ALGORITHM], runs)
    return _made(
        folder,
        run.path,
        _started(run.path / CONFIG_FILE),
        algorithm=run.algorithm,
        task=run.task,
        differs="" if differs == run.algorithm else differs,  # the name without a difference
        score=_score(run),
        state="evaluation" if run.is_evaluation else "running" if _is_running(run.path) else run.status,
    )


def _search_row(folder: Path, path: Path) -> RunRow:
    task, score = _best_trial(path)
    return _made(
        folder,
        path,
        _started(path / SEARCH_FILE),
        algorithm="search",
        task=task,
        differs="",
        score=score,
        state="running" if _is_running(path) else "ended",
    )


def _is_running(path: Path) -> bool:
    """Whether another process uses the folder. A run that writes the page at its own end has ended."""
    owner = lock_owner(path)
    return owner is not None and owner != {"pid": os.getpid(), "host": socket.gethostname()}


def _best_trial(path: Path) -> tuple[str, str]:
    """The task of a search and the value of its best trial, from best.yaml; empty before a trial has a value."""
    with suppress(OSError, UnicodeDecodeError, ConfigError, LookupError):
        text = (path / BEST_FILE).read_text(encoding="utf-8")
        task = load_written_yaml(text, BEST_FILE)["task"]["name"]
        objective = re.search(r"^# (\S+): (\S+)$", text, re.MULTILINE)  # the comment with the first objective
        return task, f"{objective[1]} {format_score(float(objective[2]))}" if objective else ""
    return "", ""


def _made(folder: Path, path: Path, started: float, **cells: Any) -> RunRow:
    relative = path.relative_to(folder)
    report = quote(f"{relative.as_posix()}/{REPORT_FILE}") if (path / REPORT_FILE).exists() else None
    date = datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M")
    return RunRow(path=relative.as_posix(), date=date, report=report, **cells)


def _score(run: RunRecord) -> str:
    """The main score in the best round, or in the last round if there is no best round."""
    metric, best = run.summary.get("metric"), run.summary.get("best", {})
    metrics = best.get("metrics") or run.summary.get("metrics", {})
    mean = metrics.get(metric, {}).get("mean")
    return "" if mean is None else f"{metric} {format_score(mean)}"


def run_table(rows: Sequence[RunRow]) -> pd.DataFrame:
    """The list as text, a row for each run; columns without any value are left out."""
    names = {"path": "run", "state": "state", "score": "score", "algorithm": "algorithm", "task": "task"}
    names |= {"differs": "what differs", "date": "date"}
    table = pd.DataFrame([{name: getattr(row, key) for key, name in names.items()} for row in rows])
    return table.loc[:, (table != "").any()]


def write_index(directory: Path) -> None:
    """Write index.html in the folder of new runs, if the run in `directory` is in it."""
    folder = runs_directory()
    if folder not in directory.absolute().parents:
        return
    rows = list_runs(folder)
    page = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(style=page_style(), name=folder.name, rows=rows[:MAX_RUNS], hidden=max(0, len(rows) - MAX_RUNS))
    write_page(folder / INDEX_FILE, text)
