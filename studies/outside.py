"""Is routing better than the global model at an unseen source? Each source of a data set is left out once.

python studies/outside.py DATA_FOLDER

Each federation is trained once per seed and source left out. `raysim evaluate` then applies every other predictor that
it has for that source.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from common import (
    Cell,
    Evaluations,
    Job,
    Row,
    arguments,
    budget,
    cell,
    configuration,
    evaluated,
    one_row,
    read_score,
    report,
    score,
    tuned,
)

SETS = ("nuclei", "optic_disc")
REFERENCE, METRIC = "fedavg", "outside/test/dice"


def main() -> None:
    args = arguments("routing at a source left out", SETS)
    study = configuration("outside")
    for name in args.data:
        cells = [cell(study, name, args, left_out) for left_out in study[name]["left_out"]]
        found = tuned(study, cells, study["methods"], args)
        of_method = {method: [found[each, method] for each in cells] for method in study["methods"]}
        evaluations = {
            predictor: [
                [evaluated(jobs, overrides, args) for overrides in how["values"]] for jobs in of_method[how["of"]]
            ]
            for predictor, how in study["predictors"].items()
        }
        singles = [single_models(jobs, args) for jobs in of_method["iop-fl"]]
        global_models = ("fedavg", "fedavg, twice the rounds", "elcfs", "feddg-ga")
        rows = {method: one_row(of_method[method]) for method in global_models}
        rows |= {f"{method}, global": one_row(of_method[method], "dice@global") for method in ("fedsm", "iop-fl")}
        rows |= {predictor: chosen(of_cells) for predictor, of_cells in evaluations.items()}
        rows["best single model"] = best_single(singles)
        more = {
            "budget": budget(study, found),
            "testable": testable(cells, of_method["fedavg"], of_method["iop-fl"], singles),
            "values": all_values(study, cells, evaluations),
        }
        title = "Dice at the source left out, %"
        report(
            args.pages / "outside.md",
            name,
            rows,
            more,
            title=title,
            reference=REFERENCE,
            pairs=study["claims"],
            role="outside",
        )


def single_models(jobs: Mapping[int, Job], args: argparse.Namespace) -> dict[str, Evaluations]:
    """The evaluations of each personal model of IOP-FL alone, by its inside site."""
    sites = next(iter(jobs.values())).summary["sites"]
    inside = [site for site, found in sites.items() if found["role"] == "inside"]
    return {site: evaluated(jobs, f"algorithm.single={site}", args) for site in inside}


def chosen(of_cells: Sequence[Sequence[Evaluations]]) -> Row:
    """The row of a predictor: at each source the value with the highest mean at the other sources, over all seeds."""
    means = pd.DataFrame([[score(folders, METRIC) for folders in values] for values in of_cells])
    picked = [of_cells[n][int(means.drop(index=n).mean().idxmax())] for n in means.index]
    return Row({seed: [folders[seed] for folders in picked] for seed in picked[0]}, "dice")


def best_single(singles: Sequence[Mapping[str, Evaluations]]) -> Row:
    """The row of the personal model that is best at each source, for each seed, by the labels of the source."""

    def best(models: Mapping[str, Evaluations], seed: int) -> Path:
        return max((folders[seed] for folders in models.values()), key=lambda folder: read_score(folder, METRIC))

    seeds = next(iter(singles[0].values()))
    return Row({seed: [best(models, seed) for models in singles] for seed in seeds}, "dice")


def testable(
    cells: Sequence[Cell],
    fedavg: Sequence[Mapping[int, Job]],
    iopfl: Sequence[Mapping[int, Job]],
    singles: Sequence[Mapping[str, Evaluations]],
) -> pd.DataFrame:
    """For each source the Dice of global models and of each personal model; means over seeds, in per cent.

    The personal models are compared with the better one of two global models: FedAvg's, and that of IOP-FL's own runs.
    """
    rows = {}
    for of_cell, jobs, own, models in zip(cells, fedavg, iopfl, singles, strict=True):
        whole = score({seed: one.folder for seed, one in jobs.items()}, METRIC)
        of_iopfl = score({seed: one.folder for seed, one in own.items()}, f"{METRIC}@global")
        each = {site: score(folders, METRIC) for site, folders in models.items()}
        best = max(each, key=lambda site: each[site])
        rows[of_cell.left_out] = {
            "global, fedavg": f"{100 * whole:.1f}",
            "global, iop-fl": f"{100 * of_iopfl:.1f}",
            "best single": f"{100 * each[best]:.1f} ({best})",
            "difference": f"{100 * (each[best] - max(whole, of_iopfl)):+.1f}",
            "each": ", ".join(f"{site} {100 * value:.1f}" for site, value in each.items()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("left out")


def all_values(
    study: Mapping[str, Any], cells: Sequence[Cell], evaluations: Mapping[str, Sequence[Sequence[Evaluations]]]
) -> pd.DataFrame:
    """The mean over seeds at each source, for every value of each predictor, in per cent."""
    rows = {
        f"{predictor}: {overrides.replace('algorithm.', '')}": {
            of_cell.left_out: f"{100 * score(values[n], METRIC):.1f}"
            for of_cell, values in zip(cells, evaluations[predictor], strict=True)
        }
        for predictor, how in study["predictors"].items()
        for n, overrides in enumerate(how["values"])
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("predictor")


if __name__ == "__main__":
    main()
