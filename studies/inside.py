"""Do personal models beat the global model, and does FedSM close the gap to pooled data? Five sites, all inside.

python studies/inside.py TABLE
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd
from common import (
    HERE,
    Job,
    arguments,
    by_case,
    compared,
    configuration,
    crossed,
    example,
    fill,
    job,
    last,
    plot,
    results,
    rounded,
    run_all,
)

DATA = {"data": "retina"}


def main() -> None:
    args = arguments("personal models inside")
    study = configuration("inside")
    data = {"table": str(args.table.absolute())}
    base = example("retina", study["base"], {"task": {"data": data}})
    tuning = list(tuning_jobs(study, base))
    tuned = results(tuning, run_all(tuning, args.runs, args.workers))
    overrides = {method: f"{of} {best(tuned, method)}" for method, of in study["methods"].items()}
    jobs = [
        job({**DATA, "stage": "inside", "seed": seed, "method": method}, base, f"seed={seed} {of}")
        for seed in args.seeds or study["seeds"]
        for method, of in overrides.items()
    ]
    found = pd.concat([tuned, results(jobs, run_all(jobs, args.runs, args.workers))], ignore_index=True)
    found.to_parquet(HERE / "inside.parquet", index=False)
    report(found, by_case(parts(overrides), jobs, args.runs, "fedavg"))


def tuning_jobs(study: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Job]:
    for method, grid in study["tuning"].items():
        for key, values in grid.items() if method != "rounds" else ():
            for value in values:
                facts = {**DATA, "stage": "inside-tuning", "seed": 0, "method": method, "setting": f"{key}={value}"}
                yield job(facts, base, f"rounds={study['tuning']['rounds']} {study['methods'][method]} {key}={value}")


def best(tuned: pd.DataFrame, method: str) -> str:
    """The setting with the best inside validation Dice; for FedSM, the Dice of the personal models."""
    rows = tuning_scores(tuned)
    rows = rows[rows["method"] == method]
    return str(rows.loc[rows["value"].idxmax(), "setting"]) if len(rows) else ""


def tuning_scores(tuned: pd.DataFrame) -> pd.DataFrame:
    rows = pd.concat([last(tuned, "dice", "val"), last(tuned, "dice@personal", "val")])
    means = rows.groupby(["method", "setting", "metric"], sort=False)["value"].mean().reset_index()
    wanted = means["metric"] == means["method"].map(
        lambda name: "dice@personal" if name.startswith("fedsm") else "dice"
    )
    return means[wanted].reset_index(drop=True)


def report(found: pd.DataFrame, paired: pd.DataFrame) -> None:
    """Write the page. `paired` has the statistics by case for each row of the first table."""
    main = found[found["stage"] == "inside"]
    rows = with_parts(main)
    notes = main[main["metric"].str.contains("routed|selector_accuracy") & (main["split"] == "test")]
    scores = tuning_scores(found[found["stage"] == "inside-tuning"])
    tables = {
        "all": compared(rows, "fedavg").join(paired),
        "sites": rounded(crossed(rows, "method", "site")),
        "routes": rounded(crossed(notes.assign(of=notes["method"] + ": " + notes["metric"]), "of", "site"), ".0f"),
        "tuning": rounded(crossed(scores, "method", "setting")),
    }
    fill("inside", tables)
    plot(rows, HERE / "inside.png", "site", "Dice on the site's test images, %", "fedavg")


def parts(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The method and the metric of each row. FedAvg is IOP-FL's global model; FedSM has a row for each model."""
    rows = {"fedavg": ("iopfl", "dice@global")} | {method: (method, "dice") for method in methods}
    for method, part in product(("fedsm", "fedsm fresh"), ("personal", "global")):
        rows[f"{method}, {part}"] = (method, f"dice@{part}")
    return rows


def with_parts(main: pd.DataFrame) -> pd.DataFrame:
    """The scores of each row."""
    rows = parts(main["method"].unique())
    found = [last(main, metric, method=method).assign(method=name) for name, (method, metric) in rows.items()]
    return pd.concat(found, ignore_index=True)


if __name__ == "__main__":
    main()
