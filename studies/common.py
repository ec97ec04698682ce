"""Functions of all studies: run federations once, read tidy results, compare methods, fill tables, plot.

A study is a script NAME.py with its configuration NAME.yaml, its results NAME.parquet, its page NAME.md and its plot
NAME.png. The script creates `Job`s, `run_all` runs those that are not finished, `results` reads them, and `fill` puts
tables into the page. After an interruption, the same command continues with the unfinished runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from matplotlib.figure import Figure

from raysim.cli.main import main as raysim
from raysim.config.merge import merge, parse_pairs, read_file
from raysim.core.errors import RunError
from raysim.reporting.case_reader import ScoreName
from raysim.reporting.comparison import compare_groups
from raysim.reporting.comparison_tables import result_table
from raysim.reporting.finished_runs import read_run
from raysim.reporting.run_groups import Repetition, RunGroup

T = TypeVar("T")
HERE = Path(__file__).parent
PATHS = ("table", "root")  # keys of task.data that are locations of the data, not its content


@dataclass(frozen=True)
class Job:
    """One federation: the facts that identify it (columns of the results), and the keys for `raysim run -c`."""

    facts: Mapping[str, Any]
    keys: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder of the run: its facts and a hash of its keys, so that runs with other keys have another folder."""
        data = {key: value for key, value in self.keys["task"]["data"].items() if key not in PATHS}
        what = {**self.keys, "task": {**self.keys["task"], "data": data}}
        return "-".join([*(str(value).replace(" ", "_") for value in self.facts.values()), short(what)])


def short(what: Any) -> str:
    """Eight hexadecimal digits of the SHA-256 of `what` as JSON."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def arguments(description: str, sets: Sequence[str] = ()) -> argparse.Namespace:
    """The arguments of a study: the data set, if it has several, the table, and the folder of the runs."""
    parser = argparse.ArgumentParser(description=description)
    if sets:
        parser.add_argument("data", choices=sets)
    parser.add_argument("table", type=Path)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds instead of those of the configuration")
    parser.add_argument(
        "--workers", type=int, default=2, help="concurrent runs, one thread each (default: %(default)s)"
    )
    args = parser.parse_args()
    if not args.table.is_file():
        parser.error(f"{args.table} is not a file: expected the table of the data set")
    return args


def configuration(name: str) -> dict[str, Any]:
    """The content of NAME.yaml."""
    return dict(yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")))


def example(name: str, *over: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of examples/NAME.yaml, overridden by those of `over`."""
    return reduce(merge, over, read_file(str(HERE.parent / "examples" / f"{name}.yaml")))


def job(facts: Mapping[str, Any], base: Mapping[str, Any], *overrides: str) -> Job:
    """The federation of the keys `base` and of overrides as on the command line (`rounds=5 algorithm=fedavg`)."""
    return Job(facts, merge(base, parse_pairs(pair for text in overrides for pair in text.split())))


def run_all(jobs: Sequence[Job], runs: Path, workers: int) -> Path:
    """Runs the jobs that are not finished, each in a folder of its name, and returns the folder of all runs."""
    runs.mkdir(parents=True, exist_ok=True)
    missing = [one for one in jobs if not done(one, runs)]
    print(f"{len(jobs)} runs in {runs}, of which {len(missing)} are not finished", flush=True)
    side_by_side(run_job, {one.name: (one, runs) for one in missing}, workers)
    return runs


def side_by_side(function: Callable[..., T], calls: Mapping[str, tuple[Any, ...]], workers: int) -> dict[str, T]:
    """The results of `function` for the arguments under each name, from `workers` processes with one thread each.

    Raises the error of the first failed call, after the calls that have already started have ended.
    """
    if not calls:
        return {}
    os.environ["OMP_NUM_THREADS"] = "1"  # results depend on the number of threads
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {name: pool.submit(function, *arguments) for name, arguments in calls.items()}
        for future, name in {future: name for name, future in futures.items()}.items():
            future.add_done_callback(lambda _, name=name: print(f"{name} has ended", flush=True))
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    return {name: future.result() for name, future in futures.items()}


def done(one: Job, runs: Path) -> bool:
    try:
        return bool(json.loads((runs / one.name / "summary.json").read_text())["status"] == "done")
    except (OSError, ValueError):
        return False


def run_job(one: Job, runs: Path) -> None:
    """`raysim run`, or `raysim resume` if the run has a folder. Raises RunError, naming the log, if it fails."""
    folder = runs.absolute() / one.name
    file, log = folder.with_name(f"{one.name}.yaml"), folder.with_name(f"{one.name}.log")
    file.write_text(yaml.safe_dump(dict(one.keys), sort_keys=False))
    command = ["resume", str(folder)] if folder.exists() else ["run", "-c", str(file), "--out", str(folder)]
    with log.open("a") as output, redirect_stdout(output), redirect_stderr(output):
        code = raysim(command)
    if code:
        raise RunError(f"{one.name} failed; its log is {log}")


def results(jobs: Iterable[Job], runs: Path) -> pd.DataFrame:
    """A row for each run, evaluated round, site, split and metric, with the facts, bytes and seconds of the run.

    Metrics of the server in those rounds have the role and the site `server`.
    """
    frames = []
    for one in jobs:
        sites, rounds = (pd.read_parquet(runs / one.name / f"{name}.parquet") for name in ("sites", "rounds"))
        logged = rounds.filter(regex="^(round$|server/)").rename(columns=lambda name: name.removeprefix("server/"))
        logged = logged.melt("round", var_name="metric").assign(site="server", role="server", split="train")
        evaluated = sites.loc[sites["split"] == "test", "round"].unique()
        both = pd.concat([sites.dropna(subset="split"), *([logged] if len(logged) else [])])
        summary = json.loads((runs / one.name / "summary.json").read_text())
        of_run = {"rounds": summary["rounds"], "seconds": summary["seconds"]}
        of_run |= {f"bytes_{direction}": summary["bytes"][direction] for direction in ("up", "down")}
        frames.append(both[both["round"].isin(evaluated)].assign(**one.facts, **of_run))
    return pd.concat(frames, ignore_index=True)


def unseen(table: Path, sites: Sequence[str], runs: Path) -> Path:
    """A copy of the table, in `runs`, in which all cases of `sites` are test cases, so no model has trained on them.

    Its paths still start at the folder of `table`, so task.data.root must be that folder.
    """
    cases = pd.read_csv(table, dtype=str, keep_default_na=False)
    cases.loc[cases["site"].isin(sites), "split"] = "test"
    copy = runs / f"{table.parent.name}-without-{'-'.join(sites)}.csv"
    copy.parent.mkdir(parents=True, exist_ok=True)
    cases.to_csv(copy, index=False)
    return copy.absolute()


def last(frame: pd.DataFrame, metric: str, split: str = "test", **equal: Any) -> pd.DataFrame:
    """The rows of a metric and split in the last round of each run, with these values in other columns."""
    found = frame[(frame["metric"] == metric) & (frame["split"] == split)]
    for column, value in equal.items():
        found = found[found[column] == value]
    return found[found["round"] == found["rounds"]]


def compared(frame: pd.DataFrame, to: str, by: str = "method") -> pd.DataFrame:
    """A row for each of `by`: `value` by seed, mean and standard deviation, and the paired difference to the row `to`.

    `frame` has the columns `by`, seed, value; several rows of a seed are averaged. `better` is the number of seeds in
    which a row is above `to`. All values are in per cent.
    """
    seeds = crossed(frame, by, "seed")
    apart = seeds - seeds.loc[to]
    return pd.DataFrame(
        {
            **{f"seed {seed}": seeds[seed].map("{:.1f}".format) for seed in seeds},
            "mean": seeds.mean(axis=1).map("{:.1f}".format),
            "sd": seeds.std(axis=1).map("{:.1f}".format) if seeds.shape[1] > 1 else "",
            f"minus {to}": [plus_minus(row) if name != to else "" for name, row in apart.iterrows()],
            "better": [f"{(row > 0).sum()}/{row.count()}" if name != to else "" for name, row in apart.iterrows()],
        }
    )


def by_case(parts: Mapping[str, tuple[str, str]], jobs: Iterable[Job], runs: Path, to: str) -> pd.DataFrame:
    """The paired statistics of `raysim compare` against the row `to`, on test cases of inside sites in the last round.

    `parts` has the rows: the method of the runs, and the metric of these runs.
    """
    each = list(jobs)
    groups = [
        RunGroup(name, tuple(repetition(one, runs) for one in each if one.facts["method"] == method))
        for name, (method, _) in parts.items()
    ]
    scores = [ScoreName("inside", "test", metric, "last") for _, metric in parts.values()]
    table = result_table(compare_groups(groups, scores, [*parts].index(to))).set_index("group").rename_axis("method")
    return table[["95 % interval", "difference", "p", "effect"]]


def repetition(one: Job, runs: Path) -> Repetition:
    return Repetition(one.facts["seed"], (read_run(runs / one.name),))


def plus_minus(values: pd.Series) -> str:
    """The mean with its sign, and the standard deviation if there are several values."""
    return f"{values.mean():+.1f}" + (f" ± {values.std():.1f}" if values.count() > 1 else "")


def crossed(frame: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """The mean of `value` for each of `rows` and `columns`, in per cent, in the order of their first occurrence."""
    table = 100 * frame.groupby([rows, columns])["value"].mean().unstack(columns)
    return table.loc[frame[rows].unique(), frame[columns].unique()]


def rounded(table: pd.DataFrame, form: str = ".1f") -> pd.DataFrame:
    """The numbers as text; missing numbers are empty."""
    return table.map(lambda value: "" if pd.isna(value) else format(value, form))


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, its index as the first column."""
    head = [table.index.name or "", *(str(name) for name in table)]
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in table.itertuples())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Put each table into the page NAME.md, between the lines `<!-- KEY -->` and `<!-- end -->`."""
    path = HERE / f"{page}.md"
    text = path.read_text(encoding="utf-8")
    for key, table in tables.items():
        before, found, rest = text.partition(f"<!-- {key} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (found and end):
            sys.exit(f"{path} has no lines for the table {key!r}: expected <!-- {key} --> and <!-- end -->")
        text = f"{before}{found}{markdown(table)}\n{end}{after}"
    path.write_text(text, encoding="utf-8")


def plot(frame: pd.DataFrame, path: Path, panel: str, title: str, to: str, by: str = "method") -> None:
    """A panel for each value of the column `panel`: a dot for each seed, a line at the mean, dashes at that of `to`."""
    panels, rows = list(frame[panel].unique()), list(frame[by].unique())
    figure = Figure(figsize=(1.8 + 1.9 * len(panels), 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=True):
        part = 100 * frame[frame[panel] == name].groupby([by, "seed"])["value"].mean().unstack("seed")
        for place, row in enumerate(rows):
            if row in part.index:
                axis.plot(part.loc[row], [place] * part.shape[1], "o", color="tab:blue", alpha=0.55, markersize=5)
                axis.plot(part.loc[row].mean(), place, "|", color="black", markersize=13, markeredgewidth=2)
        axis.axvline(part.loc[to].mean(), color="grey", linestyle="--", linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.supxlabel(title, fontsize=10)
    figure.savefig(path, dpi=110)
