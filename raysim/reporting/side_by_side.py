"""A page with several runs side by side: the keys that differ, scores, curves, sites and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import quote_path
from raysim.reporting.finished_runs import read_run
from raysim.reporting.html_report import read_or, template
from raysim.reporting.page import page_style, write_page
from raysim.reporting.pictures import MAX_BYTES, read_pictures
from raysim.reporting.plots import HEIGHT, INK, INSIDE, LOST, OUTSIDE, plot_column, render_svg
from raysim.reporting.run_groups import differing_keys, format_value
from raysim.storage.run_directory import SUMMARY_FILE, check_new_file, describe_collection, read_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_suffix(".html.j2")
LOOKS = [(colour, line) for line in ("-", "--", ":") for colour in (INSIDE, OUTSIDE, LOST, INK)]
MAX_RUNS = len(LOOKS)


def write_side_by_side(directories: Sequence[Path], path: Path) -> None:
    """Write the page of the runs in `directories` to `path`.

    Raises ConfigError if `path` exists or its folder does not, and for runs of different tasks.
    """
    check_new_file(path)
    if len(directories) > MAX_RUNS:
        raise ConfigError(f"{len(directories)} runs: expected at most {MAX_RUNS} on one page; give fewer runs")
    names, max_bytes = distinct_names(directories), MAX_BYTES // len(directories)
    runs = [_Run(directory, name, max_bytes) for directory, name in zip(directories, names, strict=True)]
    tasks = {run.summary["task"]: run.name for run in runs}
    if len(tasks) > 1:
        of = ", ".join(f"{name} is a {task}" for task, name in tasks.items())
        raise ConfigError(f"the runs have different tasks: {of}; give runs of one task")
    metrics = dict.fromkeys(name for run in runs for name in run.shown["metrics"])
    metric, differing = runs[0].summary["metric"], differing_keys([run.record for run in runs])
    page = template(TEMPLATE).render(
        style=page_style(),
        runs=runs,
        differences={key: [format_value(run.record.keys.get(key)) for run in runs] for key in differing},
        metrics=[name for name in metrics if not name.endswith("@global")],
        metric=metric,
        sites=sorted({site for run in runs for site in run.summary["sites"]}),
        split_metric=metric.split("/", 1)[1],
        plot=render_svg(f"{metric} over rounds", partial(_curves, runs=runs, metric=metric), HEIGHT),
        pictured=sorted({site for run in runs for site in run.pictures.sites}),
    )
    write_page(path, page)


class _Run:
    """The files of a run. `shown` is the best round in summary.json, or the last evaluation if there is none."""

    def __init__(self, directory: Path, name: str, max_bytes: int) -> None:
        self.name, self.record = name, read_run(directory)
        self.summary = self.record.summary
        best = self.summary["best"]
        self.shown: Mapping[str, Any] = self.summary if best["round"] is None else best
        self.round = self.summary["evaluated_round"] if best["round"] is None else best["round"]
        self.rounds = read_or(directory / "rounds.parquet", pd.read_parquet, pd.DataFrame({"round": []}))
        self.pictures = read_pictures(directory, max_bytes)


def _curves(axes: Axes, runs: Sequence[_Run], metric: str) -> None:
    for run, (colour, line) in zip(runs, LOOKS, strict=False):
        plot_column(axes, run.rounds, f"{metric}/mean", run.name, color=colour, linestyle=line)


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many of their parents as are needed to distinguish them."""
    parts = [directory.absolute().parts for directory in directories]
    lengths = range(1, max(map(len, parts)) + 1)
    candidates = [["/".join(each[-length:]) for each in parts] for length in lengths]
    return next((names for names in candidates if len(set(names)) == len(names)), candidates[0])


def check_run(directory: Path) -> None:
    """Raises ConfigError if `directory` is not the directory of a run that has ended."""
    if not directory.is_dir():
        raise ConfigError(f"{quote_path(directory)} is not a folder; expected the directory of a run")
    if advice := describe_collection(directory):
        raise ConfigError(f"{quote_path(directory)} is not a run directory: {advice}")
    if not (directory / SUMMARY_FILE).exists():
        raise ConfigError(
            f"{quote_path(directory)} has no {SUMMARY_FILE}; expected the directory of a run that has ended: "
            "`raysim status` shows the active runs, and `raysim resume` continues a run"
        )
    if "best" not in read_summary(directory):
        raise ConfigError(
            f"{quote_path(directory / SUMMARY_FILE)} is not the summary of a run of this version; run it again"
        )
