"""The predictor of `raysim predict` is that of the evaluation in the run, also where it adapts, routes or trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysim.distributed.finished_run_commands import predict
from tests.support.trained import trained

NORM = {"task.network.norm": "batch"}


@pytest.mark.parametrize(
    ("algorithm", "keys", "site", "predictor"),
    [
        ("fedavg", {"algorithm.outside": "tent", **NORM}, "b", "own"),
        ("fedavg", {"algorithm.outside": "batch_stats", **NORM}, "b", "own"),
        ("fedbn", NORM, "a", "own"),
        ("fedbabu", {"algorithm.finetune_epochs": 1}, "a", "own"),
        ("fedrdn", {}, "a", "<lambda>"),
        ("fedsm", {"data": {"outside": []}}, "a", "RoutedPredictor"),
        ("iopfl", {}, "b", "own"),
        ("localonly", {}, "a", "own"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 1 else None,
)
def test_the_dice_of_the_masks_is_that_of_the_run(
    algorithm: str, keys: Any, site: str, predictor: str, tmp_path: Path
) -> None:
    trained(tmp_path, "slices", algorithm, **keys)
    rows = pd.read_csv(tmp_path / "volumes.csv").query("site == @site and split == 'val'")
    rows.to_csv(tmp_path / "new.csv", index=False)
    predict(tmp_path / "run", str(tmp_path / "new.csv"), tmp_path / "out", site=site, round="last")
    assert set(pd.read_csv(tmp_path / "out" / "predictions.csv")["predictor"]) == {predictor}
    found, of_run = (pd.read_parquet(tmp_path / name / "cases.parquet") for name in ("out", "run"))
    of_run = of_run.query("last and site == @site and split == 'val' and metric == 'dice'")
    assert np.array_equal(found["value"], of_run["value"])
