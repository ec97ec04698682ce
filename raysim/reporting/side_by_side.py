"""A page with several runs side by side: what differs between them, scores, curves, sites and pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from raysim.core.atomic_io import write_text
from raysim.core.errors import ConfigError
from raysim.core.formatting import quote_path
from raysim.reporting.html_report import page_style, read_or, template
from raysim.reporting.pictures import MAX_BYTES, read_pictures
from raysim.reporting.plots import HEIGHT, INK, INSIDE, LOST, OUTSIDE, plot_column, render_svg
from raysim.storage.run_directory import SUMMARY_FILE, read_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_suffix(".html.j2")
LOOKS = [(colour, line) for line in ("-", "--", ":") for colour in (INSIDE, OUTSIDE, LOST, INK)]
MAX_RUNS = len(LOOKS)


def write_side_by_side(directories: Sequence[Path], path: Path) -> None:
    """Write the page of the runs in `directories` to `path`, which must not exist. Raises ConfigError otherwise."""
    if path.exists():
        raise ConfigError(f"--out {quote_path(path)} exists already; choose another name")
    if len(directories) > MAX_RUNS:
        raise ConfigError(f"{len(directories)} runs: expected at most {MAX_RUNS} on one page")
    runs = [_Run(directory, MAX_BYTES // len(directories)) for directory in directories]
    tasks = {run.summary["task"]: run.name for run in runs}
    if len(tasks) > 1:
        of = ", ".join(f"{name} is a {task}" for task, name in tasks.items())
        raise ConfigError(f"the runs have different tasks: {of}; give runs of one task")
    metrics = dict.fromkeys(name for run in runs for name in run.shown["metrics"])
    metric = runs[0].summary["metric"]
    page = template(TEMPLATE).render(
        style=page_style(),
        runs=runs,
        differences=differences([run.keys for run in runs]),
        metrics=[name for name in metrics if not name.endswith("@global")],
        metric=metric,
        sites=sorted({site for run in runs for site in run.summary["sites"]}),
        split_metric=metric.split("/", 1)[1],
        plot=render_svg(f"{metric} over rounds", partial(_curves, runs=runs, metric=metric), HEIGHT),
        pictured=sorted({site for run in runs for site in run.pictures.sites}),
    )
    write_text(path, page.encode("ascii", "xmlcharrefreplace").decode())


class _Run:
    """The files of a run. `shown` is the best round in summary.json, or the last evaluation if there is none."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.name = directory.name
        self.summary = read_summary(directory)
        best = self.summary["best"]
        self.shown: Mapping[str, Any] = self.summary if best["round"] is None else best
        self.round = self.summary["evaluated_round"] if best["round"] is None else best["round"]
        config = read_or(directory / "config.yaml", lambda path: yaml.safe_load(path.read_text()), None)
        self.keys = dict(_flat(config or {}))
        self.rounds = read_or(directory / "rounds.parquet", pd.read_parquet, pd.DataFrame({"round": []}))
        self.pictures = read_pictures(directory, max_bytes)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The dotted keys of a configuration with their values as on the command line."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("\n...\n").strip()
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, text)]
    return rows


def differences(keys: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The keys whose values differ, each with the value of every run; `-` in a run without the key."""
    names = dict.fromkeys(name for of in keys for name in of)
    values = {name: [of.get(name, "-") for of in keys] for name in names}
    return {name: of for name, of in values.items() if len(set(of)) > 1}


def _curves(axes: Axes, runs: Sequence[_Run], metric: str) -> None:
    for run, (colour, line) in zip(runs, LOOKS, strict=False):
        plot_column(axes, run.rounds, f"{metric}/mean", run.name, color=colour, linestyle=line)


def check_run(directory: Path) -> None:
    """Raises ConfigError if `directory` is not that of a run that has ended."""
    if not directory.is_dir():
        raise ConfigError(f"{quote_path(directory)} is not a folder; expected the directory of a run")
    if not (directory / SUMMARY_FILE).exists():
        raise ConfigError(
            f"{quote_path(directory)} has no {SUMMARY_FILE}; expected the directory of a run that has ended: "
            "`raysim status` shows the active runs, and `raysim resume` continues a run"
        )
    if "best" not in read_summary(directory):
        raise ConfigError(f"{quote_path(directory / SUMMARY_FILE)} is not the summary of a run of this version")
