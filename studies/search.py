"""The results of searches over whole federations on real data, and their cost.

python studies/search.py softpull RETINA_TABLE
python studies/search.py alignment WBC_TABLE
python studies/search.py methods HEART_TABLE

A search is an ordinary `raysim tune` with its folder in --runs; an interrupted search is resumed.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from common import HERE, arguments, configuration, example, fill, rounded, short

from raysim.cli.main import main as raysim
from raysim.config.merge import merge
from raysim.core.errors import RunError
from raysim.search.trial_store import load_records
from raysim.storage.run_directory import SEARCH_FILE


def main() -> None:
    args = arguments("searches over whole federations", ["softpull", "alignment", "methods"])
    study = configuration("search")[args.data]
    folders = {name: searched(study, name, options, args) for name, options in study["searches"].items()}
    tables = {name: pd.read_parquet(folder / "trials.parquet") for name, folder in folders.items()}
    found = pd.concat([table.assign(search=name) for name, table in tables.items()], ignore_index=True)
    found.to_parquet(HERE / f"search_{args.data}.parquet", index=False)
    report(args.data, found)


def searched(study: Mapping[str, Any], name: str, options: str, args: Namespace) -> Path:
    """The folder of the finished search; runs or resumes the search if it is not finished."""
    base = example(study["example"], study["base"]) if "example" in study else study["base"]
    how = [*study["options"].split(), *options.split()]
    folder: Path = args.runs.absolute() / f"search-{args.data}-{name.replace(' ', '_')}-{short([base, study, how])}"
    if not (folder / SEARCH_FILE).exists():
        args.runs.mkdir(parents=True, exist_ok=True)
        keys = folder.with_suffix(".yaml")
        data = {"task": {"data": {"table": str(args.table.absolute())}}, "backend": "local"}
        keys.write_text(yaml.safe_dump(merge(base, data), sort_keys=False), encoding="utf-8")
        spaces = [argument for each in study["space"] for argument in ("--space", each)]
        shipped = [study["shipped"]] if "shipped" in study else []
        code = raysim(["tune", *shipped, "-c", str(keys), *spaces, *how, "--out", str(folder)])
    elif any(entry.unfinished for entry in load_records(folder)):
        code = raysim(["tune", "--resume", str(folder)])
    else:
        code = 0
    if code:
        raise RunError(f"the search in {folder} failed")
    return folder


def report(data: str, found: pd.DataFrame) -> None:
    """Put the best trial, the cost and all trials of each search into the page."""
    chosen = next(name.removeprefix("best ") for name in found if name.startswith("best "))
    role, _, score, _ = chosen.split("/")
    metrics = [f"{role}/{split}/{score}/{over}" for split in ("val", "test") for over in ("worst", "mean")]
    keys = [name for name in found if name.startswith("algorithm")]
    rows = {}
    for name, table in found.groupby("search", sort=False):
        done = table[table["status"] == "done"]
        best = done.loc[done[chosen].idxmax()]
        rows[name] = {
            "trials": len(table),
            "stopped": int((table["status"] == "stopped").sum()),
            "rounds": int(table["rounds"].sum()),
            "seconds of work": round(table["seconds"].sum()),
            "best": " ".join(
                f"{key.removeprefix('algorithm.')}={format_setting(best[key])}" for key in keys if pd.notna(best[key])
            ),
            **{metric: f"{100 * best[metric]:.1f}" for metric in metrics},
        }
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("search")
    shown = found[["search", "trial", "status", "rounds", *keys, chosen]].copy()
    shown[keys] = shown[keys].map(lambda value: "" if pd.isna(value) else format_setting(value))
    shown[chosen] = 100 * shown[chosen]
    shown[[chosen]] = rounded(shown[[chosen]])
    fill("search", {data: summary, f"{data} trials": shown.set_index("search")})


def format_setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
