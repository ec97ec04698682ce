"""Does gradient alignment help at an unseen hospital? Each site is left out once.

python studies/unseen.py wbc TABLE
python studies/unseen.py heart TABLE
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from common import (
    HERE,
    Job,
    arguments,
    compared,
    configuration,
    crossed,
    fill,
    job,
    last,
    plot,
    results,
    rounded,
    run_all,
    unseen,
)

from raysim.config.merge import merge

METRIC = "balanced_accuracy"


def main() -> None:
    args = arguments("alignment at an unseen site", ("wbc", "heart"))
    study, name = configuration("unseen"), args.data
    found = tried(study, name, args.table, args)
    found.to_parquet(HERE / f"unseen_{name}.parquet", index=False)
    report(found, name)


def tried(study: Mapping[str, Any], name: str, table: Path, args: Namespace) -> pd.DataFrame:
    """The results of all runs on a data set: runs that tune the two learning rates, then each method and seed."""
    sites, seeds = sorted(pd.read_csv(table, dtype=str)["site"].unique()), args.seeds or study["seeds"]
    bases = {site: merge(study[name]["base"], {"task": {"data": keys(table, site, args.runs)}}) for site in sites}
    tuning = list(tuning_jobs(study, name, bases))
    tuned = results(tuning, run_all(tuning, args.runs, args.workers))
    lr, server_lr = (best(tuned, method) for method in ("fedavg", "R1 0"))
    rates = {"R1": f"{study[name]['R1']} algorithm.server_lr={server_lr}"}
    jobs = [
        job({"data": name, "stage": "main", "seed": seed, "left_out": site, "method": method}, base, overrides, more)
        for seed in seeds
        for site, base in bases.items()
        for method, overrides, more in with_twice(study, name)
        for overrides in [f"seed={seed} {overrides} {rates.get(method.split()[0], f'algorithm.lr={lr}')}"]
    ]
    return pd.concat([tuned, results(jobs, run_all(jobs, args.runs, args.workers))], ignore_index=True)


def keys(table: Path, site: str, runs: Path) -> dict[str, Any]:
    root = {"root": str(table.parent.absolute())} if "image" in pd.read_csv(table, nrows=0) else {}
    return {"table": str(unseen(table, [site], runs)), "outside": [site], **root}


def with_twice(study: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, str]]:
    """The name and overrides of each method, and FedAvg with twice the rounds, which has the bytes of R1 and R2."""
    yield from ((method, overrides, "") for method, overrides in study["methods"].items())
    yield "fedavg twice", study["methods"]["fedavg"], f"rounds={2 * study[name]['base']['rounds']}"


def tuning_jobs(study: Mapping[str, Any], name: str, bases: Mapping[str, Any]) -> Iterator[Job]:
    grid = study["tuning"][name]
    for site, base in bases.items():
        for method, key, more in (("fedavg", "lr", ""), ("R1 0", "server_lr", study[name]["R1"])):
            for value in grid[key]:
                facts = {"data": name, "stage": "tuning", "seed": 0, "left_out": site, "method": method}
                overrides = f"{study['methods'][method]} {more} algorithm.{key}={value}"
                yield job(facts | {"rate": value}, base, overrides)


def best(tuned: pd.DataFrame, method: str) -> float:
    """The rate with the best mean over inside validation splits."""
    rows = last(tuned, METRIC, "val", role="inside", method=method)
    return float(rows.groupby(["rate", "left_out"])["value"].mean().groupby("rate").mean().idxmax())


def report(found: pd.DataFrame, name: str) -> None:
    main, tuned = found[found["stage"] == "main"], found[found["stage"] == "tuning"]
    outside, inside = last(main, METRIC, role="outside"), last(main, METRIC, role="inside")
    twice = compared(outside, "fedavg twice")[["minus fedavg twice"]]
    picked = chosen(outside, last(main, METRIC, "val", role="inside"))
    tables = {
        "unseen": compared(outside, "fedavg").join(twice),
        "sites": by_site(outside, inside),
        "chosen": compared(picked, "fedavg").join(compared(picked, "fedavg twice")[["minus fedavg twice"]]),
        "auc": compared(last(main, "auc", role="outside"), "fedavg"),
        "spread": logged(main),
        "tuning": rates(tuned),
    }
    fill("unseen", {f"{name} {key}": table for key, table in tables.items()})
    plot(outside, HERE / f"unseen_{name}.png", "left_out", "balanced accuracy at the site left out, %", "fedavg")


def logged(main: pd.DataFrame) -> pd.DataFrame:
    """The server metrics of gradient alignment in the last round, averaged over left-out sites and seeds."""
    rows = main[main["metric"].isin(["alignment_loss", "gradient_cosine", "correction_ratio"])]
    return rounded(crossed(rows, "method", "metric") / 100, ".3g")


def by_site(outside: pd.DataFrame, inside: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds at each left-out site, and the mean over the test cases of inside sites."""
    means = 100 * inside.groupby("method")["value"].mean()
    return rounded(crossed(outside, "method", "left_out").assign(**{"inside sites": means}))


def chosen(outside: pd.DataFrame, val: pd.DataFrame) -> pd.DataFrame:
    """For each family of methods, left-out site and seed: the weight with the best score on inside validation data."""
    scores = val.groupby(["seed", "left_out", "method"])["value"].mean().reset_index()
    scores["family"] = scores["method"].map(family)
    picked = scores.loc[scores.groupby(["seed", "left_out", "family"], sort=False)["value"].idxmax()]
    rows = outside.merge(picked[["seed", "left_out", "method", "family"]], on=["seed", "left_out", "method"])
    return rows.assign(method=rows["family"])


def family(method: str) -> str:
    return method if method in ("fedavg twice", "R1 0") else method.split()[0]


def rates(tuned: pd.DataFrame) -> pd.DataFrame:
    rows = last(tuned, METRIC, "val", role="inside")
    return rounded(crossed(rows, "method", "rate"))


if __name__ == "__main__":
    main()
