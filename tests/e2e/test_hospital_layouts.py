"""Folders of nnU-Net, BIDS and MedMNIST are scanned, described, trained on, predicted and evaluated."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from raysim.cli.main import main

SHAPE, UNET = (16, 14, 8), "network={name: unet, channels: [2, 4], strides: [2], num_res_units: 0}"


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 1.0, 2.0, 1.0])), path)


def scan_of(case: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images of a case, and its mask."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:9, 3:8, 2 : 5 + case % 2] = 1
    noise = np.random.default_rng(case).integers(0, 100, (2, *SHAPE))
    return *(mask * 500.0 + noise).astype(np.int16), mask


def write_nnunet(root: Path) -> None:
    names = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    for case in range(5):
        *images, mask = scan_of(case)
        for channel, image in enumerate(images):
            save(root / "imagesTr" / f"c{case}_{channel:04}.nii.gz", image)
        save(root / "labelsTr" / f"c{case}.nii.gz", mask)
    (root / "dataset.json").write_text(json.dumps({**names, "numTraining": 5}))
    folds = [{"train": [f"c{n}" for n in range(5) if n != case], "val": [f"c{case}"]} for case in range(5)]
    (root / "splits_final.json").write_text(json.dumps(folds))


def write_bids(root: Path) -> None:
    for case in range(6):
        *images, mask = scan_of(case)
        for kind, image in zip(("FLAIR", "T1w"), images, strict=True):
            save(root / f"sub-{case}" / "anat" / f"sub-{case}_{kind}.nii.gz", image)
        save(root / "derivatives" / "manual" / f"sub-{case}" / "anat" / f"sub-{case}_label-lesion_mask.nii.gz", mask)
    lines = ["participant_id\tcenter", *(f"sub-{case}\t{('paris', 'rome')[case // 3]}" for case in range(6))]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def write_medmnist(root: Path, name: str, labels: int) -> None:
    random, counts = np.random.default_rng(0), {"train": 8, "val": 4, "test": 4}
    arrays = {f"{split}_images": random.integers(0, 255, (n, 28, 28), np.uint8) for split, n in counts.items()}
    arrays |= {f"{split}_labels": (np.arange(n * labels).reshape(n, -1) // 2) % 2 for split, n in counts.items()}
    root.mkdir()
    np.savez_compressed(root / f"{name}.npz", **arrays)


def write_one_label(root: Path) -> None:
    write_medmnist(root, "breastmnist", 1)


def write_chest(root: Path) -> None:
    write_medmnist(root, "chestmnist", 14)


PATCHES, SLICES = ("task.data.patch=[8,8,4]",), ("task.data.patch=[8,8]", "task.data.slices=true")
SMALL = ("network={name: DenseNet, init_features: 4, growth_rate: 2, block_config: [1, 1]}",)
CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "nnU-Net, patches": (write_nnunet, (UNET, *PATCHES), "prediction"),
    "BIDS, slices": (write_bids, (UNET, *SLICES), "prediction"),
    "MedMNIST": (write_one_label, SMALL, "probability_1"),
    "MedMNIST, 14 labels": (write_chest, SMALL, "probability_hernia"),
}


def raysim(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


@pytest.mark.parametrize("name", ["nnU-Net, patches", *(pytest.param(n, marks=pytest.mark.slow) for n in [*CASES][1:])])
def test_from_the_scan_to_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write, keys, column = CASES[name]
    write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    raysim("data", "scan", "data", "--fractions", "0.6,0.2,0.2")
    shown = capsys.readouterr().out
    describe, run = (shlex.split(re.search(f"raysim ({verb}.*)", shown)[1]) for verb in ("data describe", "run"))
    raysim(*describe)
    printed = [key for key in run if not key.startswith("task.data.size")]
    local = ("backend=local", "rounds=1", "task.batch_size=2", "pictures=false")
    raysim(*printed, *keys, *local, f"task.data.cache={tmp_path / 'cache'}", "--out", "out")
    raysim("predict", "out", "--images", "data/table.csv", "--out", "predicted")
    raysim("evaluate", "out", "--out", "evaluated")
    table, found = pd.read_csv("data/table.csv"), pd.read_csv("predicted/predictions.csv")
    assert len(found) == len(table)
    assert column in found
    if name.startswith(("nnU-Net", "BIDS")):
        mask = nibabel.load(tmp_path / "predicted" / found["prediction"][0])
        assert mask.shape == SHAPE
        assert mask.header.get_zooms() == (0.5, 1.0, 2.0)
