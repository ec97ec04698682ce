"""Several images for one case: channels in the order of the columns, missing ones, other grids, wrong tables."""

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
COLUMNS = ["image_t1", "image_t2"]


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two sites with T1 and T2 of each case; T2 is 100 plus T1."""
    lines = ["site,split,image_t2,image_t1,label"]
    for site in "ab":
        for number, split in enumerate(("train", "test")):
            name = f"{site}{number}"
            values = np.arange(512, dtype=np.float32).reshape(8, 8, 8) + number
            save(tmp_path / f"{name}_t1.nii", values)
            save(tmp_path / f"{name}_t2.nii", values + 100)
            save(tmp_path / f"{name}_label.nii", (values > 200).astype(np.float32))
            lines.append(f"{site},{split},{name}_t2.nii,{name}_t1.nii,{name}_label.nii")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path


def save(path: Path, values: Any, affine: Any = None) -> None:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def replace_in_table(folder: Path, old: str, new: str) -> None:
    (folder / "table.csv").write_text((folder / "table.csv").read_text().replace(old, new))


def build(folder: Path, **data: Any) -> Task:
    data = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), "image_columns": COLUMNS, **data}
    keys = {"data": {"intensity": "none", **data}, "network": NETWORK, "batch_size": 2}
    return TypeAdapter(Segmentation).validate_python(keys).build()


def test_each_column_is_a_channel(volumes: Path) -> None:
    task = build(volumes)
    assert task.shape == (2, 8, 8, 8)
    first, second = task.open("a").train.inputs[0]
    assert np.array_equal(second, first + 100)
    assert first[0, 0, 0] == 0
    assert task.case_names is not None
    assert task.case_names("a", "train")[0].image == "a0_t1.nii"


def test_the_order_is_that_of_the_key(volumes: Path) -> None:
    first, second = build(volumes, image_columns=["image_t2", "image_t1"]).open("a").train.inputs[0]
    assert np.array_equal(first, second + 100)


def test_patches_have_all_channels(volumes: Path) -> None:
    train = build(volumes, patch=[4, 4, 4]).open("a").train
    assert train.inputs.shape == (4, 2, 4, 4, 4)
    assert np.array_equal(train.inputs[:, 1], train.inputs[:, 0] + 100)


def test_a_missing_image_is_refused_or_0(volumes: Path) -> None:
    replace_in_table(volumes, "a0_t2.nii", "")
    with pytest.raises(ConfigError, match="empty image_t2 cells in row 2"):
        build(volumes)
    with pytest.warns(UserWarning, match="1 case without image_t2: its channel is set to 0"):
        task = build(volumes, missing="zeros")
    assert (task.open("a").train.inputs[0, 1] == 0).all()
    assert (task.open("b").train.inputs[0, 1] > 0).all()


def test_another_grid_is_refused_or_resampled(volumes: Path) -> None:
    coarse = (np.arange(512, dtype=np.float32).reshape(8, 8, 8) + 100)[::2]
    save(volumes / "a0_t2.nii", coarse, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(ConfigError, match=re.escape("its grid (4, 8, 8) differs in size or position")):
        build(volumes)
    first, second = build(volumes, align=True).open("a").train.inputs[0]
    assert np.allclose(second[:7], first[:7] + 100, atol=1e-3)  # the last plane is outside of the coarse grid


def test_a_changed_further_image_is_prepared_again(volumes: Path) -> None:
    build(volumes)
    save(volumes / "a0_t2.nii", np.full((8, 8, 8), 7, np.float32))
    assert (build(volumes).open("a").train.inputs[0, 1] == 7).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_t2", "image_t3", "it has no column 'image_t2'"),
        ("a0_t2.nii", "absent.nii", "files that do not exist: "),
        ("b0_t2.nii", "a0_t2.nii", "images in more than one row"),
    ],
)
def test_wrong_tables(volumes: Path, old: str, new: str, message: str) -> None:
    replace_in_table(volumes, old, new)
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(volumes)
