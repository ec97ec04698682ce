"""Do encoders that hospitals pre-train together, without labels, reduce the need for labels?

python studies/labels.py DATA_FOLDER

Each method pre-trains on all training volumes. Networks that start from its encoder are then trained with few labelled
patients per site, by FedAvg and at each site alone; some encoders also start networks for the other data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from common import (
    Comparison,
    Job,
    Row,
    arguments,
    claims,
    compared,
    configuration,
    fill,
    inside_sites,
    job,
    merge,
    results,
    row_scores,
    run_all,
    table_of,
)
from matplotlib.figure import Figure

SETS = ("acdc", "hippocampus")
RANDOM = "random start"
ALL = 7  # training patients of a site
SITES = 10
Encoders = dict[str, dict[int, Job]]  # the finished pre-trainings of each method, by seed


@dataclass(frozen=True)
class Start:
    """Where fine-tuning starts: the finished pre-trainings by seed, or random weights; and its learning rate."""

    encoders: Mapping[int, Job] | None
    rate: float


class Study:
    """The runs of the study, which are created from its configuration and executed once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.keys = args, configuration("labels")
        self.seeds = args.seeds or self.keys["seeds"]

    def base(self, data: str, labelled: int) -> dict[str, Any]:
        """The keys of a data set in which a site has this number of labelled training patients."""
        of_data = self.keys[data]
        table = table_of(self.args.folder, of_data["folder"])
        copy = labelled_table(table, labelled, self.args.runs)
        paths = {"task": {"data": {"table": str(copy), "root": str(table.parent)}}}
        return merge(merge(self.keys["base"], of_data["base"]), paths)

    def pretraining(self, data: str, method: str, seed: int, rate: float) -> Job:
        """The pre-training of a method. Its last round is one of fine-tuning, which is not used."""
        how = self.keys["pretraining"]
        rounds = (
            f"rounds={how['rounds'] + 1} evaluate_every={how['rounds'] + 1} algorithm.pretrain_rounds={how['rounds']}"
        )
        overrides = f"{self.keys['methods'][method]} {how['keys']} {rounds} algorithm.lr={rate} seed={seed}"
        facts = {"data": data, "stage": "pretraining", "method": method, "seed": seed, "rate": rate}
        return job(facts, self.base(data, ALL), overrides, self.args.runs)

    def finetuning(self, data: str, labelled: int, how: str, seed: int, rate: float, start: Job | None) -> Job:
        """The training from the encoder of a pre-training, or from random weights."""
        facts = {"data": data, "stage": how, "labelled": labelled, "seed": seed, "rate": rate}
        facts["from"] = start.name if start else RANDOM
        overrides = f"{self.keys['finetuning'][how]} {self.keys['finetuning']['keys']} algorithm.lr={rate} seed={seed}"
        base = self.base(data, labelled)
        if start:
            weights = {"weights": str(start.folder / "models" / "encoder.safetensors"), "weights_partial": True}
            base = merge(base, {"task": {"network": weights}})
        return job(facts, base, overrides, self.args.runs)

    def tuned_start(self, data: str, starts: Mapping[int, Job] | None) -> Start:
        """The start with its best rate of fine-tuning: first seed, federated, `tuned_with` labelled patients."""
        first, labelled = self.seeds[0], self.keys["pretraining"]["tuned_with"]
        start = starts[first] if starts else None
        jobs = [
            self.finetuning(data, labelled, "federated", first, rate, start)
            for rate in self.keys["finetuning"]["rates"]
        ]
        run_all(jobs, self.args)
        return Start(starts, float(max(jobs, key=validation).facts["rate"]))

    def encoders(self, data: str, methods: list[str], rate: float) -> Encoders:
        """The pre-trainings of all seeds, each method with its best rate, found by fine-tuning with the rate `rate`."""
        how, (first, *others) = self.keys["pretraining"], self.seeds
        grid = {name: [self.pretraining(data, name, first, lr) for lr in how["rates"]] for name in methods}
        run_all([each for jobs in grid.values() for each in jobs], self.args)
        tried = {
            one: self.finetuning(data, how["tuned_with"], "federated", first, rate, one)
            for jobs in grid.values()
            for one in jobs
        }
        run_all([*tried.values()], self.args)
        found = {}
        for name, jobs in grid.items():
            best = max(jobs, key=lambda one: validation(tried[one]))
            rest = {seed: self.pretraining(data, name, seed, best.facts["rate"]) for seed in others}
            found[name] = {first: best, **rest}
        run_all([each for jobs in found.values() for each in jobs.values()], self.args)
        return found

    def trained(self, data: str, labelled: int, how: str, starts: Mapping[str, Start]) -> dict[str, Row]:
        """A row per method: the runs of each seed that start from its encoder."""
        jobs = {
            name: {
                seed: self.finetuning(data, labelled, how, seed, start.rate, (start.encoders or {}).get(seed))
                for seed in self.seeds
            }
            for name, start in starts.items()
        }
        run_all([each for of_method in jobs.values() for each in of_method.values()], self.args)
        return {
            name: Row({seed: [one.folder] for seed, one in of_method.items()}, "dice")
            for name, of_method in jobs.items()
        }


def main() -> None:
    study = Study(arguments("pre-training without labels, then few labels", SETS))
    pages, keys = study.args.pages, study.keys
    methods = [name for name in keys["methods"] if name != RANDOM]
    random = {data: study.tuned_start(data, None) for data in SETS}
    encoders = {
        "acdc": study.encoders("acdc", methods, random["acdc"].rate),
        "hippocampus": study.encoders("hippocampus", keys["transferred"], random["hippocampus"].rate),
    }
    starts = {RANDOM: random["acdc"]}
    starts |= {name: study.tuned_start("acdc", of_method) for name, of_method in encoders["acdc"].items()}
    page, found = {"bytes": traffic(encoders["acdc"], starts)}, {}
    for how in ("federated", "local"):
        of_how, claimed = {}, {}
        for labelled in keys["acdc"]["labelled"]:
            rows = study.trained("acdc", labelled, how, starts)
            of_how[labelled] = found[f"{how}, N = {labelled}"] = compared(rows, RANDOM)
            claimed[labelled] = claims(keys["claims"], row_scores(rows))
        page |= {how: means(of_how, keys["published"][how]), f"{how} differences": differences(of_how)}
        page[f"{how} claims"] = claim_table(claimed)
    for source, target in (("acdc", "hippocampus"), ("hippocampus", "acdc")):
        moved = {name: study.tuned_start(target, encoders[source][name]) for name in keys["transferred"]}
        of_target = {}
        for labelled in keys["hippocampus"]["labelled"]:
            rows = study.trained(target, labelled, "federated", {RANDOM: random[target], **moved})
            of_target[labelled] = found[f"{source} to {target}, N = {labelled}"] = compared(rows, RANDOM)
        gains = differences(of_target)
        table = page[f"{source} to {target}"] = means(of_target).join(gains, rsuffix=" difference")
        table.attrs.update(gains.attrs)
    fill(pages / "labels.md", page)
    results(found).to_parquet(pages / "labels.parquet", index=False)
    plot(found, encoders["acdc"], keys["acdc"]["labelled"], pages / "labels.png")


@cache
def labelled_table(table: Path, labelled: int, runs: Path) -> Path:
    """A copy of the table, in `runs`, in which only `labelled` training patients of a site are labelled.

    The order of the patients of a site is drawn with one seed, so the patients of a smaller number are a subset of
    those of a larger number. All rows of the other training patients have the split `unlabelled`. A table with one site
    is divided into ten sites.
    """
    every = pd.read_csv(table, dtype=str, keep_default_na=False)
    patients = every.get("patient", every["image"])
    order = pd.Series(patients.unique()).sample(frac=1, random_state=0)
    if every["site"].nunique() == 1:
        splits = every.groupby(patients)["split"].first()
        number = order.groupby(order.map(splits)).cumcount() % SITES
        every["site"] = patients.map(dict(zip(order, number, strict=True))).map("site{:02}".format)
    training = every["split"] == "train"
    rank = order[order.isin(patients[training])].groupby(order.map(every.groupby(patients)["site"].first())).cumcount()
    kept = set(order[rank.index[rank < labelled]])
    every.loc[training & ~patients.isin(kept), "split"] = "unlabelled"
    copy = runs / f"{table.parent.name}-{labelled}-labelled.csv"
    runs.mkdir(parents=True, exist_ok=True)
    every.to_csv(copy, index=False)
    return copy


def validation(one: Job) -> float:
    return float(one.summary["best"]["value"])


def means(of_labelled: Mapping[int, Comparison], published: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The Dice of each method with each number of labelled patients: mean and deviation over seeds, in per cent.

    `published` are further values of each method. The last column is the gain from the fewest to the most patients.
    """
    table = pd.DataFrame(
        {
            f"N = {labelled}": {
                group.name: f"{100 * group.mean:.1f} ± {100 * group.deviation:.1f}" for group in comparison.groups
            }
            for labelled, comparison in of_labelled.items()
        }
    ).rename_axis("method")
    fewest, *_, most = (pd.Series({each.name: each.mean for each in one.groups}) for one in of_labelled.values())
    table["gain"] = (100 * (most - fewest)).map("{:+.1f}".format)
    return table if published is None else table.assign(published=[published.get(name, "") for name in table.index])


def differences(of_labelled: Mapping[int, Comparison]) -> pd.DataFrame:
    """The difference from a random start and its p-value (paired by case, Holm's correction), with the notes."""
    table = pd.DataFrame(
        {
            f"N = {labelled}": {
                group.name: f"{100 * group.difference:+.1f} (p {group.p_value:.3f})"
                for group in comparison.groups
                if group.difference is not None and group.p_value is not None
            }
            for labelled, comparison in of_labelled.items()
        }
    ).rename_axis("method")
    table.attrs["notes"] = [*dict.fromkeys(note for each in of_labelled.values() for note in each.notes)]
    return table


def claim_table(of_labelled: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """The differences of all claims with each number of labelled patients; those that are shown are in bold."""
    columns = {}
    for labelled, table in of_labelled.items():
        bold = table["better"].map({"shown": "**", "not shown": ""})
        gain = (100 * table["difference"].astype(float)).map("{:+.1f}".format)
        columns[f"N = {labelled}"] = bold + gain + bold + " (p " + table["p"] + ", " + table["seeds above"] + ")"
    return pd.DataFrame({"reference": table["reference"], **columns}).rename_axis("method")


def traffic(encoders: Encoders, starts: Mapping[str, Start]) -> pd.DataFrame:
    """The megabytes of a site in pre-training, the accuracy of a linear probe, and the learning rates."""
    rows = {}
    for name, jobs in encoders.items():
        runs = pd.DataFrame([of_pretraining(one) for one in jobs.values()]).mean()
        rows[name] = {
            **{f"MB {way}": f"{runs[way]:.2f}" for way in ("up", "down", "between")},
            "level accuracy": f"{100 * runs['level accuracy']:.0f}",
            "rate of pre-training": ", ".join(dict.fromkeys(f"{one.facts['rate']:g}" for one in jobs.values())),
            "rate of fine-tuning": f"{starts[name].rate:g}",
        }
    rows[RANDOM] = {"rate of fine-tuning": f"{starts[RANDOM].rate:g}"}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")


def of_pretraining(one: Job) -> dict[str, float]:
    rounds = pd.read_parquet(one.folder / "rounds.parquet").iloc[:-1]  # without the round of fine-tuning
    sites = pd.read_parquet(one.folder / "sites.parquet")
    cost = {way: rounds[f"bytes_{way}"].sum() / 1e6 / inside_sites(one) for way in ("up", "down", "between")}
    return cost | {"level accuracy": sites[sites["metric"] == "level_accuracy"]["value"].mean()}


def plot(found: Mapping[str, Comparison], encoders: Encoders, labelled: list[int], path: Path) -> None:
    """Dice less that of a random start, as a mean over N, over the bytes of pre-training."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    cost = {
        name: pd.DataFrame([of_pretraining(one) for one in jobs.values()]).mean() for name, jobs in encoders.items()
    }
    for place, how in enumerate(("federated", "local"), 1):
        axes = figure.add_subplot(1, 2, place)
        comparisons = [found[f"{how}, N = {number}"] for number in labelled]
        for name, of_method in cost.items():
            gains = [
                group.difference
                for comparison in comparisons
                for group in comparison.groups
                if group.name == name and group.difference is not None
            ]
            axes.plot(of_method[["up", "down", "between"]].sum(), 100 * sum(gains) / len(gains), "D", label=name)
        axes.axhline(0, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel="MB of a site in pre-training", title=f"{how} fine-tuning, mean over N")
        axes.set_ylabel("Dice less that of a random start, %")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
