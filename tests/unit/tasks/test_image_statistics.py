"""Intensities of CT and MRI, and preparation keys whose values are computed from the images of all inside sites."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydantic import TypeAdapter

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.tasks.segmentation import Segmentation

NETWORK = {"name": "unet", "channels": [2, 4], "strides": [2], "num_res_units": 0}
SPACINGS = {"a": 1.0, "b": 2.0, "c": 4.0}  # mm along the last axis


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Three sites with a volume of each split: air is -1000, tissue 40, and the labelled organ 100, 200 and 300."""
    lines = ["site,split,image,label"]
    for number, (site, mm) in enumerate(SPACINGS.items()):
        for split in ("train", "test"):
            image, label = np.full((8, 8, 8), -1000.0), np.zeros((8, 8, 8), np.uint8)
            image[2:, 2:] = 40
            label[4:6, 4:6, 2:6] = 1
            image[label > 0] = 100 * (number + 1) + (1000 if split == "test" else 0)
            for name, array in (("image", image.astype(np.float32)), ("label", label)):
                nib.save(nib.Nifti1Image(array, np.diag([1, 1, mm, 1])), tmp_path / f"{site}_{split}_{name}.nii")
            lines.append(f"{site},{split},{site}_{split}_image.nii,{site}_{split}_label.nii")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path


def build(folder: Path, **data: Any) -> Task:
    data = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), "outside": ["c"], **data}
    return TypeAdapter(Segmentation).validate_python({"data": data, "network": NETWORK, "batch_size": 2}).build()


def test_a_window_becomes_0_to_1(volumes: Path) -> None:
    image = build(volumes, intensity="window", clip=[-160, 240]).open("a").train.inputs[0, 0]
    assert image[0, 0, 0] == 0
    assert image[3, 3, 0] == pytest.approx(0.5)
    assert image[4, 4, 3] == pytest.approx(260 / 400)


def test_ct_uses_the_labelled_voxels_of_the_training_images_of_inside_sites(volumes: Path) -> None:
    task = build(volumes, intensity="ct")
    values = np.repeat([100.0, 200.0], 16)  # not those of test images, and not those of the outside site
    low, high = np.percentile(values, (0.5, 99.5))
    assert task.computed == {"clip": (low, high), "scale": (values.mean(), values.std())}
    image = task.open("a").train.inputs[0, 0]
    assert image[0, 0, 0] == pytest.approx((low - 150) / 50)
    assert image[4, 4, 3] == pytest.approx(-1)
    assert task.open("c").test.inputs.max() == pytest.approx((high - 150) / 50)
    assert f"task.data.clip=[{low:.4g}, {high:.4g}]; task.data.scale=[150, 50]" in task.summary


def test_given_values_of_ct_are_not_computed(volumes: Path) -> None:
    task = build(volumes, intensity="ct", clip=[-100, 300], scale=[50, 25])
    assert task.computed == {}
    assert task.open("a").train.inputs[0, 0, 0, 0, 0] == pytest.approx(-6)
    assert build(volumes, intensity="ct", clip=[-100, 300]).computed == {
        "clip": (-100.0, 300.0),
        "scale": (150.0, 50.0),
    }


def test_zscore_of_the_values_that_are_not_0(volumes: Path) -> None:
    for path in volumes.glob("*image.nii"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[values == -1000] = 0
        nib.save(nib.Nifti1Image(values, image.affine), path)
    image = build(volumes, intensity="zscore_nonzero").open("a").train.inputs[0, 0]
    inside = np.asarray(nib.load(volumes / "a_train_image.nii").dataobj) != 0
    assert (image[~inside] == 0).all()
    assert image[inside].mean() == pytest.approx(0, abs=1e-6)
    assert image[inside].std() == pytest.approx(1, abs=1e-5)


def test_the_median_spacing_of_inside_sites(volumes: Path) -> None:
    task = build(volumes, spacing="median", size=[8, 8, 8], fit="pad")
    assert task.computed == {"spacing": (1.0, 1.0, 1.5)}
    assert task.open("c").test.spacing[0].tolist() == [1.0, 1.0, 1.5]


def test_the_computed_values_are_cached(volumes: Path) -> None:
    first = build(volumes, spacing="median", size=[8, 8, 8]).computed
    entries = len(list((volumes / "cache").iterdir()))
    assert build(volumes, spacing="median", size=[8, 8, 8]).computed == first
    assert len(list((volumes / "cache").iterdir())) == entries


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"intensity": "window"}, "task.data.intensity=window needs the values that become 0 and 1"),
        ({"clip": [240, -160]}, "task.data.clip=[240.0, -160.0]: expected [low, high] with low < high"),
        ({"scale": [0, 1]}, "task.data.scale=[0.0, 1.0] is only used with task.data.intensity=ct"),
        ({"intensity": "ct", "classes": {"background": 0, "organ": 1}, "labelled": 1, "outside": ["a", "b"]}, ""),
    ],
)
def test_wrong_keys(volumes: Path, keys: dict[str, Any], message: str) -> None:
    if not message:  # all labelled voxels of the only inside site are equal
        message = "task.data.intensity=ct needs labelled voxels with different values"
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(volumes, **keys)
