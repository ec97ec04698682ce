"""Do encoders that hospitals pre-train together, without labels, reduce the need for labels? Hippocampus, ten sites.

python studies/fcl.py HIPPOCAMPUS_TABLE [--runs DIR] [--seeds 0 1 2] [--workers 2]

Each method pre-trains once per seed, on all training volumes. From that encoder, networks are fine-tuned with each
number of labelled volumes, by FedAvg and at each site alone. Finished parts are kept in --runs and are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from common import fill, plus_minus, rounded, short
from matplotlib.figure import Figure

from raysim import LocalFleet, ResumePoint, Task, federate
from raysim.config.merge import merge, read_file
from raysim.config.resolve import resolve
from raysim.core.seeding import seeded
from raysim.storage.checkpoint import read, write

HERE = Path(__file__).parent
RANDOM = {"name": "fedsimclr"}  # its first state is a random encoder


def main() -> None:
    parser = argparse.ArgumentParser(description="pre-training without labels, then few labels")
    parser.add_argument("table", type=Path)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds instead of those of the configuration")
    parser.add_argument(
        "--workers", type=int, default=2, help="concurrent runs, one thread each (default: %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="only write the page from finished parts; run nothing")
    args = parser.parse_args()
    study = yaml.safe_load((HERE / "fcl.yaml").read_text(encoding="utf-8"))
    folder = args.runs.absolute() / f"fcl-{short(study | {'seeds': None})}"
    folder.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for seed in args.seeds or study["seeds"]:
            run_seed(study, str(args.table.absolute()), seed, folder, args.workers)
            report(study, folder)
    report(study, folder)


def run_seed(study: Mapping[str, Any], table: str, seed: int, folder: Path, workers: int) -> None:
    """Runs one seed: the pre-trainings, then the fine-tunings, from the fewest labels on."""
    os.environ["OMP_NUM_THREADS"] = "1"  # results depend on the number of threads
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in [pool.submit(pretrained, study, table, seed, name, folder) for name in study["methods"]]:
            future.result()
        each = [(name, n, how) for n in study["labelled"] for how in study["finetuning"] for name in study["methods"]]
        for future in [pool.submit(finetuned, study, table, seed, *one, folder) for one in each]:
            print(future.result(), flush=True)


@lru_cache(maxsize=8)
def task_of(table: str, labelled: int, base: str) -> Task:
    keys = merge(read_file(str(HERE.parent / "examples" / "hippocampus_fcl.yaml")), json.loads(base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task: Task = resolve(merge(keys, {"task": {"data": {"table": table, "labelled": labelled}}})).task.build()
        return task


def prepared(study: Mapping[str, Any], table: str, method: str, labelled: int, how: str) -> tuple[Any, Task]:
    """The algorithm, and the task with `labelled` labelled volumes at each site."""
    algorithm = study["pretraining"] | (study["methods"][method] or RANDOM)
    algorithm |= {"pretrain_rounds": study["pretrain_rounds"], "finetune": study["finetuning"][how]}
    return resolve({"algorithm": algorithm}).algorithm, task_of(table, labelled, json.dumps(study["base"]))


def pretrained(study: Mapping[str, Any], table: str, seed: int, method: str, folder: Path) -> str:
    """Writes the last state of the first stage, and its bytes."""
    place = folder / f"{method}-{seed}".replace(" ", "_")
    if (place / "pretraining.json").exists():
        return method
    algorithm, task = prepared(study, table, method, max(study["labelled"]), "federated")
    rounds, cost = study["pretrain_rounds"], {"up": 0, "down": 0, "between": 0}
    fleet = LocalFleet(task, seed=seed, rounds=rounds + study["finetune_rounds"])
    if not study["methods"][method]:
        with seeded(seed, "init"):
            state, logged = replace(algorithm.init(task), done=rounds), []
    else:
        state, logged = None, []
        for last in federate(algorithm, task, fleet, rounds=fleet.rounds, seed=seed, evaluate_every=fleet.rounds):
            cost = {key: cost[key] + sum(getattr(last.traffic, key).values()) for key in cost}
            logged.append({"loss": last.loss, **last.metrics})
            state = last.state
            if last.number == rounds:
                break
    write(place, rounds, state, {})
    (place / "pretraining.json").write_text(json.dumps({"bytes": cost, "rounds": logged}))
    return method


def finetuned(study: Mapping[str, Any], table: str, seed: int, method: str, n: int, how: str, folder: Path) -> str:
    """Writes the Dice of the test volumes of each site after the second stage."""
    place = folder / f"{method}-{seed}".replace(" ", "_")
    file = place / f"{how}-{n}.json"
    if file.exists():
        return str(file)
    algorithm, task = prepared(study, table, method, n, how)
    rounds = study["pretrain_rounds"]
    state = read(place / f"round_{rounds:04d}").state
    fleet = LocalFleet(task, seed=seed, rounds=rounds + study["finetune_rounds"])
    options: dict[str, Any] = {"rounds": fleet.rounds, "seed": seed, "evaluate_every": fleet.rounds}
    *_, last = federate(algorithm, task, fleet, start=ResumePoint(rounds, state), **options)
    dice = {score.site: score.value for score in last.scores if (score.split, score.metric) == ("test", "dice")}
    file.write_text(json.dumps({"method": method, "seed": seed, "labelled": n, "finetuning": how, "dice": dice}))
    return str(file)


def rows(study: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/*-*.json")):
        found = json.loads(path.read_text())
        cost = json.loads((path.parent / "pretraining.json").read_text())["bytes"]
        share = {key: total / study["pretrain_rounds"] / len(found["dice"]) for key, total in cost.items()}
        for site, dice in found.pop("dice").items():
            yield found | {f"bytes_{key}": size for key, size in share.items()} | {"site": site, "dice": dice}


def report(study: Mapping[str, Any], folder: Path) -> None:
    """Writes the results of all sites, and the tables and the plot of the page."""
    found = pd.DataFrame(rows(study, folder))
    if found.empty:
        print("nothing is finished yet")
        return
    found.to_parquet(HERE / "fcl.parquet", index=False)
    means = found.groupby(["finetuning", "method", "labelled", "seed"])["dice"].mean().reset_index()
    methods = [name for name in study["methods"] if name in set(means["method"])]
    by_finetuning = {how: means[means["finetuning"] == how] for how in study["finetuning"]}
    tables = {how: spread(part, methods) for how, part in by_finetuning.items()}
    tables |= {f"{how} differences": differences(part, methods) for how, part in by_finetuning.items()}
    megabytes = found.groupby("method")[["bytes_up", "bytes_down", "bytes_between"]].mean().loc[methods] / 1e6
    fill("fcl", {**tables, "bytes": rounded(megabytes, ".3f")})
    plot(means, megabytes.sum(axis=1), methods)


def spread(means: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Mean over seeds of the mean over sites; with several seeds also the smallest and the largest."""
    groups = means.groupby(["method", "labelled"])["dice"]

    def cell(values: pd.Series) -> str:
        middle = f"{values.mean():.3f}"
        return middle if len(values) == 1 else f"{middle} ({values.min():.3f} to {values.max():.3f})"

    return groups.agg(cell).unstack("labelled").reindex(methods).fillna("").add_prefix("N = ")


def differences(means: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Each method minus random initialisation with the same seed, in hundredths: mean and deviation over seeds."""
    apart = less_random(means).loc[[name for name in methods if name != "random"]]
    table = apart.T.groupby(level="labelled").agg(plus_minus).T.add_prefix("N = ")
    return table.assign(**{"all N": apart.T.groupby(level="seed").mean().agg(plus_minus)})


def less_random(means: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, a column for each number of labels and seed."""
    dice = means.set_index(["method", "labelled", "seed"])["dice"].unstack(["labelled", "seed"])
    return 100 * (dice - dice.loc["random"])


def plot(means: pd.DataFrame, megabytes: pd.Series, methods: list[str]) -> None:
    """Dice minus that of random initialisation, over the bytes of a pre-training round: all seeds and their mean."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, how in enumerate(("federated", "local"), 1):
        axes = figure.add_subplot(1, 2, place)
        by_seed = less_random(means[means["finetuning"] == how]).T.groupby(level="seed").mean().T
        for name in methods:
            (line,) = axes.plot([megabytes[name]] * by_seed.shape[1], by_seed.loc[name], ".", alpha=0.5)
            axes.plot(megabytes[name], by_seed.loc[name].mean(), "D", color=line.get_color(), label=name)
        axes.axhline(0, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel="MB a round and site, up, down and between", title=f"{how} fine-tuning, mean over N")
        axes.set_ylabel("test Dice less random start, hundredths")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(HERE / "fcl.png", dpi=120)


if __name__ == "__main__":
    main()
