"""What the studies share: federations run once and kept, tidy results, paired differences, tables, plots, pages.

A study is a script NAME.py with its configuration NAME.yaml, its results NAME.parquet, its page NAME.md and its plot
NAME.png. The script makes `Job`s, `played` runs those that are not finished yet, `results` reads them, and `fill` puts
tables into the page. Rerun after a break, it goes on where it stopped.
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

T = TypeVar("T")
HERE = Path(__file__).parent
PATHS = ("table", "root")  # keys of task.data that tell where the data lie, not what they are


@dataclass(frozen=True)
class Job:
    """One federation: what tells it from the others, as columns of the results, and the keys of `raysim run -c`."""

    facts: Mapping[str, Any]
    keys: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's folder: its facts, and a sum of its keys, so that other keys never meet an old run's results."""
        data = {key: value for key, value in self.keys["task"]["data"].items() if key not in PATHS}
        what = {**self.keys, "task": {**self.keys["task"], "data": data}}
        return "-".join([*(str(value).replace(" ", "_") for value in self.facts.values()), short(what)])


def short(what: Any) -> str:
    """Eight letters that change with what is given."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def arguments(description: str, sets: Sequence[str] = ()) -> argparse.Namespace:
    """The command line of a study: which of its data sets, if it has several, its table, and where runs are kept."""
    parser = argparse.ArgumentParser(description=description)
    if sets:
        parser.add_argument("data", choices=sets)
    parser.add_argument("table", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="finished runs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", help="other than those of the configuration: a first look")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each (default: %(default)s)")
    args = parser.parse_args()
    if not args.table.is_file():
        parser.error(f"{args.table} is no file: expected the table of the data set")
    return args


def configuration(name: str) -> dict[str, Any]:
    """What NAME.yaml holds."""
    return dict(yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")))


def example(name: str, *over: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of examples/NAME.yaml, and over them those given."""
    return reduce(merge, over, read_file(str(HERE.parent / "examples" / f"{name}.yaml")))


def job(facts: Mapping[str, Any], base: Mapping[str, Any], *words: str) -> Job:
    """The federation of the keys `base` and of `words` as on the command line (`rounds=5 algorithm=fedavg`)."""
    return Job(facts, merge(base, parse_pairs(word for part in words for word in part.split())))


def played(jobs: Sequence[Job], runs: Path, workers: int) -> Path:
    """The folder with all of `jobs` finished, each in a folder of its name; only what is missing is run."""
    runs.mkdir(parents=True, exist_ok=True)
    missing = [one for one in jobs if not done(one, runs)]
    print(f"{len(jobs)} runs, {len(missing)} of them still to do, in {runs}", flush=True)
    side_by_side(play, {one.name: (one, runs) for one in missing}, workers)
    return runs


def side_by_side(function: Callable[..., T], calls: Mapping[str, tuple[Any, ...]], workers: int) -> dict[str, T]:
    """What `function` returns for the arguments under each name, in so many processes of one thread.

    Raises what the first one raised that failed; those that have begun by then end before.
    """
    if not calls:
        return {}
    os.environ["OMP_NUM_THREADS"] = "1"  # the number of threads is part of a result
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


def play(one: Job, runs: Path) -> None:
    """`raysim run`, or `raysim resume` where it was begun before. Raises RunError, naming its log, if it fails."""
    folder = runs.absolute() / one.name
    file, log = folder.with_name(f"{one.name}.yaml"), folder.with_name(f"{one.name}.log")
    file.write_text(yaml.safe_dump(dict(one.keys), sort_keys=False))
    words = ["resume", str(folder)] if folder.exists() else ["run", "-c", str(file), "--out", str(folder)]
    with log.open("a") as told, redirect_stdout(told), redirect_stderr(told):
        code = raysim(words)
    if code:
        raise RunError(f"{one.name} has failed; its log is {log}")


def results(jobs: Iterable[Job], runs: Path) -> pd.DataFrame:
    """A row for each run, judged round, site, split and metric, with the run's facts, bytes and seconds.

    What the server logs in those rounds stands under the role and the site `server`.
    """
    frames = []
    for one in jobs:
        sites, rounds = (pd.read_parquet(runs / one.name / f"{name}.parquet") for name in ("sites", "rounds"))
        logged = rounds.filter(regex="^(round$|server/)").rename(columns=lambda name: name.removeprefix("server/"))
        logged = logged.melt("round", var_name="metric").assign(site="server", role="server", split="train")
        judged = sites.loc[sites["split"] == "test", "round"].unique()
        both = pd.concat([sites.dropna(subset="split"), *([logged] if len(logged) else [])])
        summary = json.loads((runs / one.name / "summary.json").read_text())
        of_run = {"rounds": summary["rounds"], "seconds": summary["seconds"]}
        of_run |= {f"bytes_{way}": summary["bytes"][way] for way in ("up", "down")}
        frames.append(both[both["round"].isin(judged)].assign(**one.facts, **of_run))
    return pd.concat(frames, ignore_index=True)


def unseen(table: Path, sites: Sequence[str], runs: Path) -> Path:
    """A copy of the table, in `runs`, in which all cases of `sites` are test cases: all of it is new to a model.

    Its paths still start from the folder of `table`, which is task.data.root then.
    """
    cases = pd.read_csv(table, dtype=str, keep_default_na=False)
    cases.loc[cases["site"].isin(sites), "split"] = "test"
    copy = runs / f"{table.parent.name}-without-{'-'.join(sites)}.csv"
    copy.parent.mkdir(parents=True, exist_ok=True)
    cases.to_csv(copy, index=False)
    return copy.absolute()


def last(frame: pd.DataFrame, metric: str, split: str = "test", **equal: Any) -> pd.DataFrame:
    """The rows of that metric and split in the last judged round of each run, where other columns are as given."""
    found = frame[(frame["metric"] == metric) & (frame["split"] == split)]
    for column, value in equal.items():
        found = found[found[column] == value]
    return found[found["round"] == found["rounds"]]


def compared(frame: pd.DataFrame, to: str, by: str = "method") -> pd.DataFrame:
    """A row for each of `by`: `value` by seed, mean and standard deviation, and the paired difference to the row `to`.

    `frame` has the columns `by`, seed, value; several rows of a seed are averaged. `better` counts the seeds in which a
    row is above `to`. All in per cent.
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


def plus_minus(values: pd.Series) -> str:
    """The mean with its sign, and the standard deviation where there are several."""
    return f"{values.mean():+.1f}" + (f" ± {values.std():.1f}" if values.count() > 1 else "")


def crossed(frame: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """The mean of `value` for each of `rows` and `columns`, in per cent, in the order in which they come."""
    table = 100 * frame.groupby([rows, columns])["value"].mean().unstack(columns)
    return table.loc[frame[rows].unique(), frame[columns].unique()]


def rounded(table: pd.DataFrame, form: str = ".1f") -> pd.DataFrame:
    """The numbers as text; what is not there as nothing."""
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
            sys.exit(f"{path} has no place for the table {key!r}: expected <!-- {key} --> and <!-- end -->")
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
