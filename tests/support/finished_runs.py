"""Folders of finished runs with chosen scores, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from raysim.config.merge import merge, parse_pairs
from raysim.config.resolve import resolve, to_mapping
from raysim.core.atomic_io import write_json

Values = Mapping[str, Sequence[float | None]]  # of the cases of each site


def write_run(
    folder: Path,
    values: Values | Mapping[str, Values],
    keys: str = "",
    *,
    names: str | None = "{site}-{case}.png",
    best: int | None = 1,
    role: str = "inside",
    **summary: Any,
) -> Path:
    """A finished run with test scores of each case: of dice, or by metric. `keys` are as on the command line."""
    folder.mkdir(parents=True)
    config = to_mapping(resolve(merge({"backend": "local"}, parse_pairs(keys.split()))))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "log.jsonl").touch()
    first = next(iter(values.values()))
    by_metric: Any = values if isinstance(first, Mapping) else {"dice": values}
    rows = [
        {
            "round": 1,
            "last": True,
            "best": best == 1,
            "site": site,
            "role": role,
            "split": "test",
            "case": case,
            "image": names and names.format(site=site, case=case),
            "patient": None,
            "predictor": "global",
            "metric": metric,
            "value": value,
        }
        for metric, of_sites in by_metric.items()
        for site, of_site in of_sites.items()
        for case, value in enumerate(of_site)
    ]
    frame = pd.DataFrame(rows).astype({"image": "string", "patient": "string", "value": float})
    frame.to_parquet(folder / "cases.parquet", index=False)
    facts = {
        "status": "done",
        "algorithm": config["algorithm"]["name"],
        "task": config["task"]["name"],
        "seed": config["seed"],
        "metric": f"{role}/test/dice",
        "better": {"dice": "higher", "auc": "higher", "hd95": "lower"},
        "evaluated_round": 1,
        "best": {"round": best, "metric": "inside/val/dice"} if best else {"round": None, "reason": "no val cases"},
        "bytes": {"up": 100, "down": 200, "between_sites": 0},
        "seconds": 2.0,
        "metrics": {},
        "sites": {},
    }
    write_json(folder / "summary.json", facts | summary)
    return folder
