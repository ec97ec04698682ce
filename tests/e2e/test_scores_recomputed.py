"""The scores of finished runs equal those that numpy and scipy compute from the saved model and the raw files."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim import run
from raysim.tasks.segmentation_metrics import METRICS
from tests.support import recomputed
from tests.support.recomputed import Array

SPLITS = ("train", "train", "val", "test", "test")
SITES = ("north", "south")
NETWORKS = """
from torch import nn


def segmenter(in_channels, out_channels, dims):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(conv(in_channels, 8, 3, padding=1), nn.ReLU(), conv(8, out_channels, 3, padding=1))


class Classifier(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.linear = nn.Linear(8, out_channels)

    def forward(self, x):
        return self.linear(self.conv(x).relu().amax((2, 3)))
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return runpy.run_path("own_networks.py")


def scene(seed: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A noisy image with two balls, and their mask with the values 1 and 2; some have no second ball."""
    random = np.random.default_rng(seed)
    grid, mask = np.indices(shape), np.zeros(shape, np.uint8)
    for value in (1, 2) if seed % 3 else (1,):
        centre = [random.integers(2, length - 2) for length in shape]
        mask[sum((grid[axis] - centre[axis]) ** 2 for axis in range(len(shape))) < 7] = value
    return random.normal(100, 25, shape) + 45 * mask, mask


def run_on(rows: list[tuple[str, str, str, str]], **keys: Any) -> Any:
    """The summary of a run of two rounds on the table with these rows."""
    pd.DataFrame(rows, columns=["site", "split", "image", "label"]).to_csv("table.csv", index=False)
    config = {"rounds": 2, "algorithm.lr": 0.03, "algorithm.epochs": 8, "task.batch_size": 2}
    data = {"table": "table.csv", "cache": "cache", **keys.pop("data", {})}
    return run(config | {"task.data": data} | keys, backend="local", out="out").summary


def check(summary: Any, site: str, split: str, expected: dict[str, float]) -> None:
    found = {name: value for name, value in summary["sites"][site].items() if name.startswith(f"{split}/")}
    assert found == pytest.approx(
        {f"{split}/{name}{end}": value for name, value in expected.items() for end in ("", "@global")}, rel=1e-6
    )


@pytest.mark.parametrize("kind", ["volumes", "pictures", "resized pictures"])
def test_scores_of_a_segmentation(kind: str, working_directory: dict[str, Any]) -> None:
    metrics = [name for name in recomputed.OVERLAPS if name in METRICS]
    shape, size = ((12, 10, 6), None) if kind == "volumes" else ((24, 20), (16, 12) if "resized" in kind else None)
    rows, cases = [], dict[tuple[str, str], list[tuple[Array, Array, Array]]]()
    for number, (site, split) in enumerate((site, split) for site in SITES for split in SPLITS):
        image, mask = scene(number, shape)
        files = [Path(f"{number}{end}.{'nii.gz' if kind == 'volumes' else 'png'}") for end in ("", "_m")]
        for file, array in zip(files, (image.clip(0, 255).astype(np.uint8), mask), strict=True):
            if kind == "volumes":  # left, posterior, superior, anisotropic
                nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.4, -0.9, 3.0, 1.0])), file)
            else:
                Image.fromarray(array).save(file)
        rows.append((site, split, *map(str, files)))
        read = recomputed.read_volume if kind == "volumes" else recomputed.read_picture
        (raw, spacing), (label, _) = map(read, files)
        prepared = recomputed.zscore(raw)
        if size is not None:
            prepared, label = recomputed.resize(prepared, size), recomputed.resize_labels(label, size)
            spacing = spacing * np.array(shape) / np.array(size)
        cases.setdefault((site, split), []).append((prepared, label, spacing))
    data = {"classes": ["background", "one", "two"], **({"size": list(size)} if size else {})}
    network = {"name": "own_networks:segmenter", "dims": len(shape)}
    summary = run_on(rows, **{"task": "segmentation", "data": data, "network": network, "task.metrics": metrics})
    net = recomputed.load_network(working_directory["segmenter"](1, 3, len(shape)), Path("out"))
    expected = {
        key: recomputed.segmentation_scores(net, found, ("one", "two"), metrics) for key, found in cases.items()
    }
    for site in SITES:
        for split in ("val", "test"):
            check(summary, site, split, expected[site, split])
    means = [expected[site, "test"]["dice"] for site in SITES]
    assert 0.05 < min(means) < max(means) < 1
    assert summary["metrics"]["inside/test/dice"]["mean"] == pytest.approx(np.mean(means), rel=1e-6)
    assert summary["metrics"]["inside/test/dice"]["worst"] == pytest.approx(min(means), rel=1e-6)


def test_scores_of_a_classification(working_directory: dict[str, Any]) -> None:
    classes = ("absent", "large", "small")
    rows, cases = [], dict[tuple[str, str], list[tuple[Array, int]]]()
    for number, (site, split) in enumerate((site, split) for site in SITES for split in SPLITS for _ in range(6)):
        random, file = np.random.default_rng(number), Path(f"{number}.png")
        image, kind = random.normal(100, 30, (12, 12)), number % 3
        image[2 : 2 + (0, 7, 2)[kind], 3 : 3 + (0, 7, 2)[kind]] += 40
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file)
        rows.append((site, split, str(file), classes[kind]))
        cases.setdefault((site, split), []).append((recomputed.zscore(recomputed.read_picture(file)[0]), kind))
    network = {"name": "own_networks:Classifier"}
    summary = run_on(rows, **{"task": "classification", "network": network, "task.metrics": ["auc", "accuracy"]})
    net = recomputed.load_network(working_directory["Classifier"](1, 3), Path("out"))
    for (site, split), found in cases.items():
        if split == "train":
            continue
        logits = np.stack([recomputed.predict(net, image) for image, _ in found])
        labels = np.array([kind for _, kind in found])
        accuracy = float((logits.argmax(1) == labels).mean())
        check(summary, site, split, {"auc": recomputed.auc(logits, labels), "accuracy": accuracy})
    assert 0.5 < summary["metrics"]["inside/test/auc"]["mean"] < 1
