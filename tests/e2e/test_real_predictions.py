"""Predictions on real pictures and volumes: the grid of the files, and the Dice of the written masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim import predict, run
from tests.support.paths import DATA

NETWORK = {"name": "unet", "channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 0}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}"),
]


def trained(name: str, sites: list[str], folder: Path, data: dict[str, Any]) -> pd.DataFrame:
    """A run on a few cases of each split at these sites; returns the rows of its table, with absolute paths."""
    table = pd.read_csv(DATA / name / "table.csv")
    table = table[table["site"].isin(sites)].groupby(["site", "split"]).head(3).reset_index(drop=True)
    for column in ("image", "label"):
        table[column] = [str(DATA / name / path) for path in table[column]]
    table.to_csv(folder / "table.csv", index=False)
    keys = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), **data}
    task = {"name": "segmentation", "data": keys, "network": NETWORK, "batch_size": 2}
    config = {"rounds": 2, "task": task, "algorithm.lr": 0.01, "algorithm.epochs": 5}
    run(config, backend="local", out=folder / "run")
    return table


def dice(predicted: Any, label: Any) -> float:
    return float(2 * (predicted & label).sum() / (predicted.sum() + label.sum()))


def test_masks_of_fundus_pictures(tmp_path: Path) -> None:
    table = trained("optic_disc", ["drishti", "palm"], tmp_path, {"size": [64, 64]})
    predict(tmp_path / "run", str(tmp_path / "table.csv"), tmp_path / "out")
    listed = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("image")["prediction"]
    values = pd.read_parquet(tmp_path / "out" / "cases.parquet").set_index("image")["value"]
    for row in table.itertuples():
        mask = np.asarray(Image.open(tmp_path / "out" / listed[row.image]))
        label = np.asarray(Image.open(row.label))
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) <= {0, 255}
        name = next(name for name in values.index if row.image.endswith(name))
        assert values[name] == pytest.approx(dice(mask == 255, label > 0), abs=1e-6)
    assert values.mean() > 0.5


def test_masks_of_cardiac_volumes(tmp_path: Path) -> None:
    data = {"size": [64, 64], "slices": True, "classes": ["background", "rv", "myocardium", "lv"]}
    table = trained("acdc_cardiac", ["site01", "site02"], tmp_path, data)
    predict(tmp_path / "run", str(tmp_path / "table.csv"), tmp_path / "out", site="site01")
    cases = pd.read_parquet(tmp_path / "out" / "cases.parquet")
    listed = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("image")["prediction"]
    values = cases[cases["metric"] == "dice_lv"].set_index("image")["value"]
    for row in table.itertuples():
        image, mask = nibabel.load(row.image), nibabel.load(tmp_path / "out" / listed[row.image])
        assert mask.shape == image.shape[:3]
        assert np.array_equal(mask.affine, image.affine)
        label = np.asarray(nibabel.load(row.label).dataobj)
        name = next(name for name in values.index if row.image.endswith(name))
        assert values[name] == pytest.approx(dice(np.asarray(mask.dataobj) == 3, label == 3), abs=1e-6)
