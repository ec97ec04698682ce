"""Does routing beat the global model at an unseen camera? Each of three cameras is left out once.

python studies/outside.py TABLE

Each federation is trained once. Then every predictor that it has for the left-out camera is evaluated there.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import (
    HERE,
    Job,
    arguments,
    compared,
    configuration,
    crossed,
    done,
    example,
    fill,
    job,
    plot,
    rounded,
    run_job,
    short,
    side_by_side,
    unseen,
)

from raysim import LocalFleet, Reply, Site
from raysim.config.merge import merge, parse_pairs
from raysim.config.resolve import resolve
from raysim.storage.checkpoint import newest_first, read

METRIC = "dice"
METHODS = [
    "fedavg",
    "tent",
    "single, mean",
    "single, best",
    "fedsm global",
    "fedsm",
    "fedsm fresh global",
    "fedsm fresh",
    "iopfl",
]
TRAINING = ("lr", "optimizer", "epochs", "schedule")


@dataclass(frozen=True)
class Candidate:
    """A predictor for outside sites: that of `algorithm` with `state`; `value` is the tuned value."""

    method: str
    value: float
    algorithm: Any
    state: Any


def main() -> None:
    args = arguments("routing at an unseen camera")
    study = configuration("outside")
    jobs = list(trainings(study, args))
    evaluated = side_by_side(
        evaluate_candidates, {one.name: (one, args.runs, study["answers"]) for one in jobs}, args.workers
    )
    found = pd.concat(evaluated.values(), ignore_index=True)
    found.to_parquet(HERE / "outside.parquet", index=False)
    report(found)


def trainings(study: Mapping[str, Any], args: Namespace) -> Iterator[Job]:
    for seed, (camera, sites) in product(args.seeds or study["seeds"], study["cameras"].items()):
        table = unseen(args.table, sites, args.runs)
        data = {"table": str(table), "root": str(args.table.parent.absolute()), "outside": sites}
        base = example("retina", study["base"], {"task": {"data": data}})
        for method, overrides in study["trained"].items():
            facts = {"data": "retina", "stage": "outside", "seed": seed, "left_out": camera, "trained": method}
            yield job(facts, base, f"seed={seed} {overrides}")


def evaluate_candidates(one: Job, runs: Path, grid: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each candidate, outside site and metric; stored in the folder of the run, so it is computed once."""
    folder = runs / one.name
    kept = folder / f"answers-{short(grid)}.parquet"
    if kept.exists():
        return pd.read_parquet(kept)
    if not done(one, runs):
        run_job(one, runs)
    task = resolve(one.keys).task.build()
    state = read(next(newest_first(folder / "checkpoints"))).state
    rows = []
    for candidate in candidates(one, state, grid):
        fleet = LocalFleet(task, seed=one.facts["seed"], rounds=one.keys["rounds"])
        replies = fleet.at(task.outside).map(evaluate, (candidate.algorithm, candidate.state))
        for site, metric, score in ((s, m, v) for s, reply in replies.items() for m, v in reply.metrics.items()):
            rows.append(
                {**one.facts, "method": candidate.method, "tuned": candidate.value, "site": site, "metric": metric}
            )
            rows[-1]["value"] = score
    found = pd.DataFrame(rows)
    found.to_parquet(kept, index=False)
    return found


def evaluate(site: Site[Any], shared: tuple[Any, Any]) -> Reply[None]:
    algorithm, state = shared
    predict = algorithm.predictor(site, state)
    with torch.no_grad():
        main = getattr(predict, "main", predict)
        notes = predict.notes(site.data.test) if hasattr(predict, "notes") else {}
        return Reply(None, metrics=dict(site.task.score(main, site.data.test, site.device)) | notes)


def candidates(one: Job, state: Any, grid: Mapping[str, Any]) -> Iterator[Candidate]:
    """All candidates of a trained federation; those of FedAvg and Tent use IOP-FL's global model."""
    if (trained := one.facts["trained"]) != "iopfl":
        yield Candidate(f"{trained} global", 0, algorithm(one, "fedavg"), state.model)
        for value in grid["fedsm"]:
            yield Candidate(trained, value, algorithm(one, "fedsm", f"algorithm.threshold={value}"), state)
        return
    yield Candidate("fedavg", 0, algorithm(one, "fedavg"), state.model)
    for site, model in sorted(state.best.items()):
        yield Candidate(f"single {site}", 0, algorithm(one, "fedavg"), model)
    passes = grid["passes"]
    for value in grid["tent"]:
        overrides = ("algorithm.outside=tent", f"algorithm.outside.passes={passes}", f"algorithm.outside.lr={value}")
        yield Candidate("tent", value, algorithm(one, "fedavg", *overrides), state.model)
    for value in grid["iopfl"]:
        overrides = (f"algorithm.passes={passes}", f"algorithm.outside_lr={value}")
        yield Candidate("iopfl", value, algorithm(one, "iopfl", *overrides), state)


def algorithm(one: Job, name: str, *overrides: str) -> Any:
    """The algorithm of the run with overrides; an algorithm of another name gets only the fields of local training."""
    given = one.keys["algorithm"]
    fields = {key: value for key, value in given.items() if name == given["name"] or key in TRAINING}
    return resolve(merge({**one.keys, "algorithm": {**fields, "name": name}}, parse_pairs(overrides))).algorithm


def report(found: pd.DataFrame) -> None:
    dice = by_camera(found[found["metric"] == METRIC])
    rows = pd.concat([plain(dice), tuned(dice), singles(dice)], ignore_index=True)
    rows = rows.set_index("method").loc[METHODS].reset_index()
    routed = found[found["metric"].str.startswith("routed")]
    routes = by_camera(routed.assign(method=routed["method"] + ": " + routed["metric"]))
    tables = {
        "all": compared(rows, "fedavg"),
        "cameras": rounded(crossed(rows, "method", "left_out")),
        "values": rounded(
            crossed(dice.assign(method=dice["method"] + " " + dice["tuned"].map("{:g}".format)), "method", "left_out")
        ),
        "routes": rounded(crossed(routes, "method", "tuned"), ".0f"),
    }
    fill("outside", tables)
    plot(rows, HERE / "outside.png", "left_out", "Dice at the camera left out, %", "fedavg")


def by_camera(found: pd.DataFrame) -> pd.DataFrame:
    """Means over the sites of a camera."""
    return found.groupby(["method", "tuned", "left_out", "seed"], sort=False)["value"].mean().reset_index()


def plain(dice: pd.DataFrame) -> pd.DataFrame:
    return dice[dice["method"].isin(["fedavg", "fedsm global", "fedsm fresh global"])]


def singles(dice: pd.DataFrame) -> pd.DataFrame:
    """The mean of the personal models, and the best at this camera, which is known only with its labels."""
    each = dice[dice["method"].str.startswith("single ")].groupby(["left_out", "seed"], sort=False)["value"]
    parts = {"single, mean": each.mean(), "single, best": each.max()}
    return pd.concat([part.reset_index().assign(method=name) for name, part in parts.items()])


def tuned(dice: pd.DataFrame) -> pd.DataFrame:
    """Each method, at each camera with the value that is best at the other two cameras, over all seeds."""
    chosen = []
    for method in ("tent", "fedsm", "fedsm fresh", "iopfl"):
        rows = dice[dice["method"] == method]
        for camera in rows["left_out"].unique():
            others = rows[rows["left_out"] != camera].groupby("tuned")["value"].mean()
            chosen.append(rows[(rows["left_out"] == camera) & (rows["tuned"] == others.idxmax())])
    return pd.concat(chosen)


if __name__ == "__main__":
    main()
