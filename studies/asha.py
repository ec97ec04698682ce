"""What does ASHA find, compared with whole trials, in a search over methods and learning rates, and what does it cost?

python studies/asha.py DATA_FOLDER

Both schedulers get the same trials: random search draws them by seed and number alone.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from common import arguments, configuration, fill, prepared_table, run_search, short, table_of
from matplotlib.figure import Figure

from raysim.config.merge import merge

CHOSEN, TESTED = "best/inside/val/dice/worst", "best/inside/test/dice/worst"  # of the best round of a trial


def main() -> None:
    args = arguments("ASHA against whole trials", ["nuclei"])
    study = configuration("asha")
    table = table_of(args.folder, study["folder"])
    copy = prepared_table(table, "nuclei", study, "", args.runs)
    keys = merge(study["base"], {"task": {"data": {"table": str(copy), "root": str(table.parent)}}})
    frames = []
    for seed in args.seeds or study["seeds"]:
        for scheduler in study["schedulers"]:
            how = [
                *study["options"].split(),
                "--trials",
                str(study["trials"]),
                "--scheduler",
                scheduler,
                f"seed={seed}",
            ]
            what = {key: value for key, value in study.items() if key not in ("schedulers", "seeds")}
            folder: Path = args.runs / f"asha-{scheduler}-{seed}-{short([what, how])}"
            run_search(folder, keys, study["space"], [*how, "--max-concurrent", str(args.workers)], study["trials"])
            frames.append(pd.read_parquet(folder / "trials.parquet").assign(scheduler=scheduler, seed=seed))
    found = pd.concat(frames, ignore_index=True)
    found.to_parquet(args.pages / "asha.parquet", index=False)
    fill(args.pages / "asha.md", {"searches": summary(found), "trials": all_trials(found)})
    plot(found, args.pages / "asha.png")


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row per search: its cost, its best trial, and the Dice of the worst site on validation and test cases.

    The best trial is one that has taken all rounds, as in `raysim tune`.
    """
    rows = {}
    for (seed, scheduler), trials in found.groupby(["seed", "scheduler"], sort=False):
        best = trials.loc[trials[trials["status"] == "done"][CHOSEN].idxmax()]
        rows[f"{scheduler}, seed {seed}"] = {
            "rounds": int(trials["rounds"].sum()),
            "seconds of training": f"{trials['seconds'].sum():.0f}",
            "best trial": best["trial"],
            "method": best["algorithm"],
            "learning rate": f"{best['algorithm.lr']:.2g}",
            "worst site, val": f"{100 * best[CHOSEN]:.1f}",
            "worst site, test": f"{100 * best[TESTED]:.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("search")


def all_trials(found: pd.DataFrame) -> pd.DataFrame:
    """A row per trial and seed: its configuration, and the rounds and the compared value under each scheduler."""
    keys = ["seed", "trial", "algorithm", "algorithm.lr"]
    table = found.pivot(index=keys, columns="scheduler", values=["rounds", CHOSEN]).reset_index()
    shown = pd.DataFrame({key.removeprefix("algorithm."): table[key] for key in keys})
    shown["lr"] = shown["lr"].map("{:.2g}".format)
    for scheduler in found["scheduler"].unique():
        shown[f"rounds, {scheduler}"] = table["rounds", scheduler].astype(int)
        shown[f"val, {scheduler}"] = (100 * table[CHOSEN, scheduler]).map("{:.1f}".format)
    return shown.set_index("seed")


def plot(found: pd.DataFrame, path: Path) -> None:
    """A panel per seed: the best value so far over the rounds that all trials have taken until then."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    seeds = found["seed"].unique()
    for axis, seed in zip(figure.subplots(1, len(seeds), squeeze=False, sharey=True)[0], seeds, strict=True):
        for scheduler, trials in found[found["seed"] == seed].groupby("scheduler", sort=False):
            axis.step(trials["rounds"].cumsum(), 100 * trials[CHOSEN].cummax(), where="post", label=scheduler)
        axis.set(title=f"seed {seed}", xlabel="rounds of all trials")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.supylabel("best Dice of the worst site, %", fontsize=10)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
