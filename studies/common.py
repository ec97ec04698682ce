"""Functions of all studies: tune and run federations, compare them as `raysim compare` does, fill tables, plot.

A study is a script NAME.py with its configuration NAME.yaml, its results NAME.parquet, its page NAME.md and its plots.
Each run is an ordinary `raysim run` in the folder --runs. After an interruption, the same command continues with the
runs that are not finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import yaml
from matplotlib.figure import Figure

from raysim.cli.main import main as raysim
from raysim.config.merge import merge, parse_pairs
from raysim.core.errors import RunError
from raysim.reporting.case_reader import ScoreName, read_groups
from raysim.reporting.case_scores import GroupScores
from raysim.reporting.comparison import Comparison, compare_groups
from raysim.reporting.comparison_tables import format_p_value, numbers, result_table, site_table
from raysim.reporting.finished_runs import read_run
from raysim.reporting.run_groups import Repetition, RunGroup
from raysim.reporting.statistics import holm
from raysim.search.trial_store import load_records
from raysim.storage.run_directory import SEARCH_FILE

T = TypeVar("T")
HERE = Path(__file__).parent
Evaluations = Mapping[int, Path]  # the folders of runs or evaluations, by seed
PATHS = ("table", "root")  # keys of task.data that are locations of the data, not its content


@dataclass(frozen=True, eq=False)
class Cell:
    """One data set without the sites `left_out`, and the keys of its federations."""

    data: str
    left_out: str
    base: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Job:
    """One federation: the facts that identify it, and the keys for `raysim run -c`."""

    facts: Mapping[str, Any]
    keys: Mapping[str, Any]
    runs: Path

    @cached_property
    def folder(self) -> Path:
        """The folder of the run: its facts and a hash of its keys, so that runs with other keys have another folder."""
        data = {key: value for key, value in self.keys["task"]["data"].items() if key not in PATHS}
        what = {**self.keys, "task": {**self.keys["task"], "data": data}}
        texts = (str(value).replace(" ", "_").replace("/", "_") for value in self.facts.values() if value != "")
        return self.runs / "-".join([*texts, short(what)])

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return finished(self.folder)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json of the finished run."""
        return dict(json.loads((self.folder / "summary.json").read_text()))


@dataclass(frozen=True)
class Row:
    """A row of a table: for each seed the folders of its runs, one for each cell; the compared metric and round."""

    runs: Mapping[int, Sequence[Path]]
    metric: str
    round: Literal["best", "last"] = "best"


def short(what: Any) -> str:
    """Eight hexadecimal digits of the SHA-256 of `what` as JSON."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def finished(folder: Path) -> bool:
    """Whether the run or the evaluation in `folder` has finished."""
    try:
        return bool(json.loads((folder / "summary.json").read_text())["status"] == "done")
    except (OSError, ValueError):
        return False


def arguments(description: str, sets: Iterable[str]) -> argparse.Namespace:
    """The arguments of a study: the folder of the data sets, the data sets, seeds, the folder of the runs, `pages`.

    The tables, plots and Parquet files are written to `pages`: this folder, or with other seeds a copy in `runs`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="the folder of the data sets, NAME/table.csv for each")
    known = [*sets]
    parser.add_argument("--data", nargs="+", choices=known, default=known, help="data sets (default: all)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="seeds instead of those of the configuration; the page is then written to RUNS/pages",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="concurrent runs, one thread each (default: %(default)s)"
    )
    args = parser.parse_args()
    args.runs = args.runs.absolute()
    args.pages = HERE
    if args.seeds:
        args.pages = args.runs / "pages"
        args.pages.mkdir(parents=True, exist_ok=True)
        for path in (*HERE.glob("*.md"), *HERE.glob("*.parquet")):
            shutil.copy(path, args.pages)
    return args


def configuration(name: str) -> dict[str, Any]:
    """The content of NAME.yaml."""
    return dict(yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")))


def table_of(folder: Path, name: str) -> Path:
    """The table of a data set. Exits with a message if there is none."""
    table = (folder / name / "table.csv").absolute()
    if not table.is_file():
        sys.exit(f"{table} is not a file: expected the table of the data set {name}; remove it from --data")
    return table


def cell(study: Mapping[str, Any], name: str, args: argparse.Namespace, left_out: str = "") -> Cell:
    """The cell of a data set; all cases of the sites `left_out`, separated by commas, are test cases."""
    table, of_data = table_of(args.folder, study[name].get("folder", name)), study[name]
    data: dict[str, Any] = {"table": str(table)}
    if "image" in pd.read_csv(table, nrows=0):
        data["root"] = str(table.parent)
    if left_out or {"cases", "site"} & set(of_data) or "root" not in data:
        data["table"] = str(prepared_table(table, name, of_data, left_out, args.runs))
    if left_out:
        data["outside"] = left_out.split(",")
    base = merge(merge(study.get("base", {}), of_data["base"]), {"task": {"data": data}})
    return Cell(name, left_out, base)


def prepared_table(table: Path, name: str, of_data: Mapping[str, Any], left_out: str, runs: Path) -> Path:
    """A copy of the table, in `runs`, whose paths still start at the folder of `table` (task.data.root).

    The column `site` of the configuration has the sites. Each site and split has at most `cases[split]` cases, drawn
    with one seed. All cases of the sites `left_out` are test cases, so no model has trained on them. Without images and
    patients, each row gets the name of a patient, by which the cases of two runs are paired.
    """
    every = pd.read_csv(table, dtype=str, keep_default_na=False)
    every["site"] = every[of_data.get("site", "site")]
    if not {"image", "patient"} & set(every):
        every["patient"] = [f"row {number}" for number in every.index]  # `compare` pairs cases by a name
    if cases := of_data.get("cases"):
        parts = [
            group.sample(min(len(group), cases[str(split)]), random_state=0)
            for (_, split), group in every.groupby(["site", "split"])
        ]
        every = pd.concat(parts).sort_index()
    every.loc[every["site"].isin(left_out.split(",")), "split"] = "test"
    copy = runs / f"{name}-{short([left_out, cases, of_data.get('site')])}.csv"
    runs.mkdir(parents=True, exist_ok=True)
    every.to_csv(copy, index=False)
    return copy


def job(facts: Mapping[str, Any], base: Mapping[str, Any], overrides: str, runs: Path) -> Job:
    """The federation of the keys `base` and of overrides as on the command line, `rounds=5 algorithm=fedavg`."""
    return Job(facts, merge(base, parse_pairs(overrides.split())), runs)


def tuned(
    study: Mapping[str, Any], cells: Sequence[Cell], methods: Mapping[str, str], args: argparse.Namespace
) -> dict[tuple[Cell, str], dict[int, Job]]:
    """The finished federations of each cell and method, by seed.

    Each method has the same tuning budget: the values of its learning rate are tried with the first seed and all
    rounds, and the one with the best main metric on validation cases is used for the other seeds.
    """
    first, *others = args.seeds or study["seeds"]

    def one(cell: Cell, method: str, seed: int, key: str, rate: float) -> Job:
        facts = {"data": cell.data, "left_out": cell.left_out, "method": method, "seed": seed, "rate": rate}
        overrides = methods[method].replace("twice", f"rounds={2 * cell.base['rounds']}")
        return job(facts, cell.base, f"{overrides} seed={seed} {key}={rate}", args.runs)

    grid = {
        (cell, method): [one(cell, method, first, key, rate) for rate in values]
        for cell in cells
        for method in methods
        for key, values in [learning_rates(study, cell.data, method)]
    }
    run_all([each for jobs in grid.values() for each in jobs], args)
    found = {}
    for (cell, method), jobs in grid.items():
        best = max(jobs, key=lambda each: each.summary["best"]["value"])
        key, _ = learning_rates(study, cell.data, method)
        rest = {seed: one(cell, method, seed, key, best.facts["rate"]) for seed in others}
        found[cell, method] = {first: best, **rest}
    run_all([each for jobs in found.values() for each in jobs.values()], args)
    return found


def learning_rates(study: Mapping[str, Any], data: str, method: str) -> tuple[str, Sequence[float]]:
    """The key of the learning rate of a method, and the values that are tried."""
    given = study[data].get("rates", study.get("rates"))
    ((key, values),) = given.get(method, given["all"]).items()
    return key, values


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Runs the jobs that are not finished, each in a folder of its name."""
    args.runs.mkdir(parents=True, exist_ok=True)
    missing = {one.name: (one,) for one in jobs if not one.done}
    print(f"{len(jobs)} runs in {args.runs}, of which {len(missing)} are not finished", flush=True)
    side_by_side(run_job, missing, args.workers)


def run_search(
    folder: Path, keys: Mapping[str, Any], space: Sequence[str], options: Sequence[str], trials: int
) -> None:
    """Runs `raysim tune` into `folder`, or resumes it, if the search is not finished. Raises RunError if it fails."""
    records = load_records(folder) if (folder / SEARCH_FILE).exists() else []
    if not (folder / SEARCH_FILE).exists():
        file = folder.with_name(f"{folder.name}.yaml")
        file.write_text(yaml.safe_dump({**keys, "backend": "local"}))
        spaces = [argument for each in space for argument in ("--space", each)]
        code = raysim(["tune", "-c", str(file), *spaces, *options, "--out", str(folder)])
    elif len(records) < trials or any(entry.unfinished for entry in records):
        code = raysim(["tune", "--resume", str(folder)])
    else:
        code = 0
    if code:
        raise RunError(f"the search in {folder} failed")


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
            future.add_done_callback(lambda done, name=name: done.cancelled() or print(f"{name} has ended", flush=True))
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    return {name: future.result() for name, future in futures.items()}


def run_job(one: Job) -> None:
    """`raysim run`, or `raysim resume` if the run has a folder. Raises RunError, naming the log, if it fails."""
    file, log = (one.folder.with_name(f"{one.name}.{end}") for end in ("yaml", "log"))
    file.write_text(yaml.safe_dump(dict(one.keys), sort_keys=False))
    is_new = not one.folder.exists()
    execute(["run", "-c", str(file), "--out", str(one.folder)] if is_new else ["resume", str(one.folder)], log)


def execute(command: Sequence[str], log: Path) -> None:
    """`raysim COMMAND`, with its output in `log`. Raises RunError, naming the log, if it fails."""
    with log.open("a") as output, redirect_stdout(output), redirect_stderr(output):
        code = raysim([*command])
    if code:
        raise RunError(f"raysim {' '.join(command)} failed; its log is {log}")


def evaluated(jobs: Mapping[int, Job], overrides: str, args: argparse.Namespace) -> Evaluations:
    """The folders of the evaluations of finished runs with other keys (`raysim evaluate`), each done once."""
    folders = {seed: one.folder / "evaluations" / short(overrides) for seed, one in jobs.items()}
    missing = {}
    for seed, one in jobs.items():
        if not finished(folders[seed]):
            command = ["evaluate", str(one.folder), *overrides.split(), "--out", str(folders[seed])]
            missing[f"{one.name}, {overrides}"] = (command, one.folder.with_name(f"{one.name}.log"))
    side_by_side(execute, missing, args.workers)
    return folders


def score(folders: Evaluations, metric: str) -> float:
    """The mean over runs or evaluations of a score of summary.json, in the best round, as a mean over sites."""
    return float(pd.Series([read_score(folder, metric) for folder in folders.values()]).mean())


def read_score(folder: Path, metric: str) -> float:
    summary = json.loads((folder / "summary.json").read_text())
    metrics = summary["best"].get("metrics", summary["metrics"])  # an evaluation has one round
    return float(metrics[metric]["mean"])


def one_row(cells: Sequence[Mapping[int, Job]], metric: str = "dice") -> Row:
    """The row of a method from its runs in each cell, by seed."""
    return Row({seed: [jobs[seed].folder for jobs in cells] for seed in cells[0]}, metric)


def compared(rows: Mapping[str, Row], reference: str, role: str = "inside") -> Comparison:
    """The comparison of `raysim compare` of all rows with the row `reference`, on test cases.

    The cells of a row are pooled: each is another set of sites.
    """
    groups = run_groups(rows)
    return compare_groups(groups, score_names(rows, role), [*rows].index(reference))


def claims(pairs: Sequence[tuple[str, str]], scores: Mapping[str, GroupScores]) -> pd.DataFrame:
    """A row for each claim that a method is better than a reference, both names of `scores`.

    The difference of the means over seeds and sites, its p-value (paired by case; Holm's correction over all claims of
    the table), and the number of seeds with a higher mean. A claim is shown if p < 0.05 and the mean is higher with
    every seed: the test uses means over seeds, so its p-value does not include the variation between seeds.
    """
    p_values = holm([scores[method].paired(scores[reference], "wilcoxon").p_value for method, reference in pairs])
    table = []
    for (method, reference), p_value in zip(pairs, p_values, strict=True):
        by_seed = (scores[method].sites - scores[reference].sites).mean(axis=1)
        shown = p_value < 0.05 and (by_seed > 0).all()
        table.append(
            {
                "method": method,
                "reference": reference,
                "difference": f"{by_seed.mean():+.4f}",
                "p": format_p_value(p_value),
                "seeds above": f"{(by_seed > 0).sum()} of {len(by_seed)}",
                "better": "shown" if shown else "not shown",
            }
        )
    return pd.DataFrame(table).set_index("method")


def row_scores(rows: Mapping[str, Row], role: str = "inside") -> dict[str, GroupScores]:
    """The scores of each row on test cases."""
    return dict(zip(rows, read_groups(run_groups(rows), score_names(rows, role))[0], strict=True))


def run_groups(rows: Mapping[str, Row]) -> list[RunGroup]:
    return [
        RunGroup(
            name,
            tuple(Repetition(seed, tuple(read_run(path) for path in paths)) for seed, paths in row.runs.items()),
        )
        for name, row in rows.items()
    ]


def score_names(rows: Mapping[str, Row], role: str) -> list[ScoreName]:
    return [ScoreName(role, "test", row.metric, row.round) for row in rows.values()]


def tables(comparison: Comparison) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `raysim compare` without bytes and seconds, which `budget` has: all sites, each site.

    The attribute `notes` of the first table has the notes of the comparison.
    """
    results = result_table(comparison).drop(columns=["bytes", "seconds"])
    overall, sites = (each.set_index("group").rename_axis("method") for each in (results, site_table(comparison)))
    overall.attrs["notes"] = list(comparison.notes)
    return overall, sites


def budget(study: Mapping[str, Any], found: Mapping[tuple[Cell, str], Mapping[int, Job]]) -> pd.DataFrame:
    """A row per method: rounds, optimizer steps and bytes of a site, seconds, learning rates, and the last quarter.

    The last quarter is the gain of the best validation score in the last quarter of the rounds, as a mean over runs.
    """
    by_method: dict[str, list[Job]] = {}
    for (_, method), jobs in found.items():
        by_method.setdefault(method, []).extend(jobs.values())
    rows = {method: cost(jobs, study["models"].get(method, 1)) for method, jobs in by_method.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def cost(jobs: Sequence[Job], models: int) -> dict[str, str]:
    runs = pd.DataFrame(
        [
            {
                "rounds": one.summary["rounds"],
                "steps": one.summary["rounds"] * models * steps_per_round(one),
                "kB": sum(one.summary["bytes"].values()) / 1e3 / inside_sites(one),
                "seconds": one.summary["seconds"],
                "last quarter": last_quarter(one),
            }
            for one in jobs
        ]
    ).mean()
    rates = dict.fromkeys(f"{one.facts['rate']:g}" for one in jobs)
    return {
        "rounds": f"{runs['rounds']:.0f}",
        "steps per site": f"{runs['steps']:.0f}",
        "kB per site": f"{runs['kB']:,.0f}",
        "seconds": f"{runs['seconds']:.0f}",
        "learning rate": ", ".join(rates),
        "last quarter": f"{100 * runs['last quarter']:+.1f}",
    }


def steps_per_round(one: Job) -> float:
    """The optimizer steps of one model at a site in a round, as a mean over inside sites.

    Centralized takes all steps of the sites at one site, unless it matches their mean; R1 takes one at the server.
    """
    algorithm, rows = one.keys["algorithm"], pd.read_csv(one.keys["task"]["data"]["table"], dtype=str)
    if algorithm.get("mode") == "gradient":
        return 1.0
    sizes = rows[rows["split"] == "train"].groupby("site").size()
    steps = (sizes / one.keys["task"]["batch_size"]).apply(math.ceil)
    is_pooled = algorithm["name"] == "centralized" and not algorithm.get("match_local_steps")
    return float(steps.sum() if is_pooled else steps.mean())


def inside_sites(one: Job) -> int:
    return sum(site["role"] == "inside" for site in one.summary["sites"].values())


def last_quarter(one: Job) -> float:
    """The gain of the best validation score after three quarters of the rounds."""
    rounds, metric = pd.read_parquet(one.folder / "rounds.parquet"), one.summary["metric"]
    scores = rounds.set_index("round")[f"{metric}/mean"].dropna()
    early = scores[scores.index <= 0.75 * one.keys["rounds"]]
    return float(scores.max() - early.max())


def results(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """The numbers of all comparisons, with their names in the column `table`."""
    return pd.concat([numbers(each).assign(table=name) for name, each in comparisons.items()], ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, its index as the first column."""
    head = [table.index.name or "", *(str(name) for name in table)]
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in table.itertuples())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Put each table with its notes into the page `path`, between the lines `<!-- KEY -->` and `<!-- end -->`."""
    text = path.read_text(encoding="utf-8")
    for key, table in tables.items():
        before, found, rest = text.partition(f"<!-- {key} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (found and end):
            sys.exit(f"{path} has no lines for the table {key!r}: expected <!-- {key} --> and <!-- end -->")
        notes = "".join(f"\nNote: {note}.\n" for note in table.attrs.get("notes", ()))
        text = f"{before}{found}{markdown(table)}\n{notes}{end}{after}"
    path.write_text(text, encoding="utf-8")


def report(
    page: Path,
    name: str,
    rows: Mapping[str, Row],
    more: Mapping[str, pd.DataFrame],
    *,
    title: str,
    reference: str,
    pairs: Sequence[tuple[str, str]],
    role: str = "inside",
) -> None:
    """Compare the rows of a data set, and write the tables into the page, the plot and the Parquet file.

    `more` are further tables of the page, with the key `NAME KEY`. `pairs` are the claims.
    """
    comparison = compared(rows, reference, role)
    overall, sites = tables(comparison)
    scores = row_scores(rows, role)
    more = {"claims": claims(pairs, scores), **more}
    fill(page, {name: overall, f"{name} sites": sites, **{f"{name} {key}": table for key, table in more.items()}})
    plot(scores, page.with_name(f"{page.stem}_{name}.png"), title, reference)
    results({name: comparison}).to_parquet(page.with_name(f"{page.stem}_{name}.parquet"), index=False)


def plot(scores: Mapping[str, GroupScores], path: Path, title: str, reference: str) -> None:
    """A panel per site: a dot per seed and row, a line at the mean, dashes at the mean of the row `reference`."""
    panels = [str(site) for site in scores[reference].sites]
    figure = Figure(figsize=(2.0 + 1.7 * len(panels), 0.9 + 0.25 * len(scores)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, site in zip(axes, panels, strict=True):
        for place, of_row in enumerate(scores.values()):
            if site in of_row.sites:
                values = 100 * of_row.sites[site]
                axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.55, markersize=5)
                axis.plot(values.mean(), place, "|", color="black", markersize=13, markeredgewidth=2)
        axis.axvline(100 * scores[reference].sites[site].mean(), color="grey", linestyle="--", linewidth=1)
        axis.set_title(site, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(scores)), [*scores], fontsize=9)
    axes[0].invert_yaxis()
    figure.supxlabel(title, fontsize=10)
    figure.savefig(path, dpi=100)
