"""Random search, TPE and Gaussian processes at equal compute, on searches over whole federations on real data.

python studies/search.py DATA_FOLDER

A search is an ordinary `raysim tune` with its folder in --runs; an interrupted search is resumed. All searches have the
same number of trials and rounds. A seed determines the draws of the search and the training of its trials.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pandas as pd
from common import arguments, configuration, fill, prepared_table, run_search, short, table_of
from matplotlib.figure import Figure

from raysim.config.merge import merge

STUDY = configuration("search")
SEARCHES = ("softpull", "iopfl", "alignment")
PANELS = {
    "softpull": "FedSM on nuclei:\nDice of the worst inside site",
    "iopfl": "IOP-FL on nuclei:\nDice of the site that is left out",
    "alignment": "gradient alignment on glaucoma:\nAUC of the worst source left out",
}


def main() -> None:
    args = arguments("random search, TPE and Gaussian processes at equal compute", SEARCHES)
    for name in args.data:
        frames = [
            pd.read_parquet(searched(name, sampler, seed, args) / "trials.parquet").assign(sampler=sampler, seed=seed)
            for seed in args.seeds or STUDY["seeds"]
            for sampler in STUDY["samplers"]
        ]
        found = pd.concat(frames, ignore_index=True)
        found.to_parquet(args.pages / f"search_{name}.parquet", index=False)
        fill(args.pages / "search.md", {name: summary(found), f"{name} trials": all_trials(found)})
    plot(args.pages)


def searched(name: str, sampler: str, seed: int, args: Namespace) -> Path:
    """The folder of the finished search."""
    study = STUDY[name]
    how = [*study["options"].split(), "--trials", str(STUDY["trials"]), "--searcher", sampler, f"seed={seed}"]
    folder: Path = args.runs / f"search-{name}-{sampler}-{seed}-{short([study, how])}"
    table = table_of(args.folder, STUDY["folders"][name])
    copy = prepared_table(table, table.parent.name, study, "", args.runs)
    keys = merge(study["base"], {"task": {"data": {"table": str(copy), "root": str(table.parent)}}})
    run_search(folder, keys, study["space"], [*how, "--max-concurrent", str(args.workers)], STUDY["trials"])
    return folder


def objective(found: pd.DataFrame) -> str:
    """The column of the compared value, that of the trial's best round: `best/ROLE/val/METRIC/OVER`.

    The column with a space, `best ROLE/...`, has the largest value of all rounds, which may be another round.
    """
    return next(name for name in found if name.startswith("best ")).replace("best ", "best/")


def searched_keys(found: pd.DataFrame) -> list[str]:
    return [name for name in found if name.startswith("algorithm.")]


def best_trials(found: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each search, chosen by validation."""
    return found.loc[found.groupby(["sampler", "seed"], sort=False)[objective(found)].idxmax()]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row per search: its best trial, the value that chose it and the test value of the same round, and the cost."""
    chosen, rows = objective(found), {}
    tested = chosen.replace("/val/", "/test/")
    for best in best_trials(found).to_dict("records"):
        search = found[(found["sampler"] == best["sampler"]) & (found["seed"] == best["seed"])]
        rows[f"{best['sampler']}, seed {best['seed']}"] = {
            "trials": len(search),
            "rounds": int(search["rounds"].sum()),
            "best trial": best["trial"],
            **{key.removeprefix("algorithm."): f"{best[key]:.3g}" for key in searched_keys(found)},
            "val": f"{100 * best[chosen]:.1f}",
            "test": f"{100 * best[tested]:.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("search")


def all_trials(found: pd.DataFrame) -> pd.DataFrame:
    """A row per trial: its keys, and the compared value of each sampler and seed, in per cent."""
    keys, chosen = searched_keys(found), objective(found)
    shown = found[["sampler", "seed", "trial", *keys]].copy()
    shown[keys] = shown[keys].map("{:.3g}".format)
    return shown.assign(val=(100 * found[chosen]).map("{:.1f}".format)).set_index("sampler")


def plot(pages: Path) -> None:
    """A panel per search: the best value after each trial, as the mean over the seeds and their range."""
    tables = {name: pages / f"search_{name}.parquet" for name in SEARCHES}
    tables = {name: pd.read_parquet(file) for name, file in tables.items() if file.exists()}
    figure = Figure(figsize=(3.6 * len(tables), 3.4), layout="constrained")
    for axis, (name, found) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        for marker, (sampler, trials) in zip("os^", found.groupby("sampler", sort=False), strict=True):
            values = 100 * trials.pivot(index="trial", columns="seed", values=objective(found)).cummax()
            (line,) = axis.plot(values.mean(axis=1), marker=marker, markersize=4, label=sampler)
            axis.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.15)
        axis.set_title(PANELS[name], fontsize=10)
        axis.set_xlabel(f"trials of {found['rounds'].max()} rounds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    figure.savefig(pages / "search.png", dpi=110)


if __name__ == "__main__":
    main()
