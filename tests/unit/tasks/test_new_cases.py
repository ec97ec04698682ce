"""The names of predicted files, and tasks without images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from raysim import ConfigError
from raysim.tasks.new_cases import NewCases, TrainedTask, prepare_new_cases, relative_names, target_files
from raysim.tasks.segmentation import Segmentation
from raysim.tasks.segmentation_config import SegmentationData
from raysim.tasks.synthetic import Synthetic
from raysim.tasks.tabular import Tabular, TabularData
from tests.support import toy


def cases(*names: str) -> NewCases:
    return NewCases(toy.two_sites(), names, names, [None] * len(names))


def test_names_are_relative_to_the_common_folder() -> None:
    assert relative_names(["/data/a/1.png", "/data/a/2.png"]) == ["1.png", "2.png"]
    assert relative_names(["/data/a/1.png", "/data/ab/1.png"]) == ["a/1.png", "ab/1.png"]
    assert relative_names(["s3://bucket/x/1.nii.gz", "s3://bucket/y/1.nii.gz"]) == ["x/1.nii.gz", "y/1.nii.gz"]
    assert relative_names(["zip://x/1.png::/data/all.zip", "zip://x/2.png::/data/all.zip"]) == ["1.png", "2.png"]
    assert relative_names(["/1.png"]) == ["1.png"]


def test_masks_are_png_files_or_volumes() -> None:
    found = target_files(cases("a.JPG", "b.nii.gz", "c.nii", "d/e.tiff", "f.g.png"))
    assert found == ["a.png", "b.nii.gz", "c.nii", "d/e.png", "f.g.png"]


def test_two_images_with_one_mask_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"the masks of a\.jpg, a\.png would both be a\.png; rename one of the images"
    ):
        target_files(cases("a.jpg", "a.png"))


def test_a_mask_outside_the_output_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"outside the output folder; use paths without '\.\.'"):
        target_files(cases("b.png", "../a.png"))


def test_masks_beside_the_images_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "b.png", "b-Label.png", "mask.png", "c_mask.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "num_res_units": 0}
    config = Segmentation(data=SegmentationData(table="none.csv", cache=str(tmp_path / "cache")), network=network)
    trained = TrainedTask(config, (1, 8, 8), {"background": 0, "organ": 1})
    with pytest.warns(
        UserWarning, match=r"left out: 2 files that seem to be masks of other files, such as a_mask\.png"
    ):
        found = prepare_new_cases(trained, str(tmp_path), "new", scanner=False)
    assert list(found.names) == ["a.png", "b.png", "c_mask.png", "mask.png"]


def test_new_rows_do_not_depend_on_the_folds_of_the_run(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [f"{site},{split},{i},{i % 2}" for site in "ab" for i, split in enumerate(["train"] * 6 + ["test"] * 2)]
    table.write_text("\n".join(["site,split,age,label", *rows]))
    data = TabularData(table=str(table), folds=2, fold=0, val=0.2, cache=str(tmp_path / "cache"))
    found = prepare_new_cases(TrainedTask(Tabular(data=data), (1,), {"0": 0, "1": 1}), str(table), "new", scanner=False)
    assert found.task.sizes == {"new": {"train": 0, "val": 0, "test": 16, "unlabelled": 0}}


def test_a_task_without_images_is_refused() -> None:
    trained = TrainedTask(Synthetic(), (1, 8, 8), {"background": 0, "organ": 1})
    with pytest.raises(ConfigError, match="the task of the run, synthetic, has no images"):
        prepare_new_cases(trained, "images", "new", scanner=False)
