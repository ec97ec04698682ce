"""Does gradient alignment help at an unseen hospital? Each source of a data set is left out once.

python studies/unseen.py DATA_FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from common import (
    Cell,
    Job,
    arguments,
    budget,
    cell,
    configuration,
    one_row,
    report,
    score,
    tuned,
)

SETS = ("glaucoma", "wbc", "heart")
REFERENCE = "fedavg"
CEILING = {"centralized": "algorithm=centralized"}
SERVER_METRICS = ("alignment_loss", "gradient_cosine", "correction_ratio")


def main() -> None:
    args = arguments("alignment at a source left out", SETS)
    study = configuration("unseen")
    for name in args.data:
        cells = [cell(study, name, args, left_out) for left_out in study[name]["left_out"]]
        whole = cell(study, name, args)
        ceiling = tuned(study, [whole], CEILING, args)[whole, "centralized"]
        found = tuned(study, cells, study["methods"], args)
        metric = study[name]["metric"]
        rows = {method: one_row([found[each, method] for each in cells], metric) for method in study["methods"]}
        more = {
            "budget": budget(study, found),
            "ceiling": ceiling_table(metric, cells, found, ceiling),
            "logged": logged(study, cells, found),
        }
        title = f"{metric} at the source left out, %"
        report(
            args.pages / "unseen.md",
            name,
            rows,
            more,
            title=title,
            reference=REFERENCE,
            pairs=study["claims"],
            role="outside",
        )


def ceiling_table(
    metric: str, cells: Sequence[Cell], found: Mapping[tuple[Cell, str], Mapping[int, Job]], ceiling: Mapping[int, Job]
) -> pd.DataFrame:
    """For each source the score of FedAvg without it, of FedAvg at the other sources, and of a network trained on all.

    The last one is on the test split of the source, the first on all its cases; means over seeds, in per cent.
    """
    rows = {}
    for each in cells:
        folders = {seed: one.folder for seed, one in found[each, REFERENCE].items()}
        site = pd.Series([of_site(one, each.left_out, f"test/{metric}") for one in ceiling.values()])
        rows[each.left_out] = {
            "fedavg, left out": f"{100 * score(folders, f'outside/test/{metric}'):.1f}",
            "fedavg, other sources": f"{100 * score(folders, f'inside/test/{metric}'):.1f}",
            "centralized with this source": f"{100 * site.mean():.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("source")


def of_site(one: Job, site: str, name: str) -> float:
    """A score of a site in the best round."""
    sites = pd.read_parquet(one.folder / "sites.parquet")
    split, metric = name.split("/")
    of_round = sites[(sites["round"] == one.summary["best"]["round"]) & (sites["site"] == site)]
    return float(of_round[(of_round["split"] == split) & (of_round["metric"] == metric)]["value"].item())


def logged(
    study: Mapping[str, Any], cells: Sequence[Cell], found: Mapping[tuple[Cell, str], Mapping[int, Job]]
) -> pd.DataFrame:
    """The server's metrics of gradient alignment in the last round, as means over sources and seeds."""
    rows = {}
    for method in study["methods"]:
        runs = [one for each in cells for one in found[each, method].values()]
        last = pd.DataFrame([pd.read_parquet(one.folder / "rounds.parquet").iloc[-1] for one in runs])
        rows[method] = {name: last.get(f"server/{name}", pd.Series(dtype=float)).mean() for name in SERVER_METRICS}
    table = pd.DataFrame.from_dict(rows, orient="index").dropna(how="all").rename_axis("method")
    return table.map(lambda value: "" if pd.isna(value) else f"{value:.3g}")


if __name__ == "__main__":
    main()
