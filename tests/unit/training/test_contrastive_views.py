"""Levels of slices by hand, batches over levels, views from a seed, and refused data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raysim import ConfigError, Data, Split
from raysim.cli.main import main
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.seeding import seeded
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.contrastive_views import (
    ImagePool,
    Views,
    check_levels,
    levels,
    levels_along,
    pool_levels,
    sample_batches,
)


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 2, 3, 4]),
        (5, [1, 2, 3, 4, 4]),
        (6, [1, 1, 2, 2, 3, 3]),
        (8, [1, 1, 2, 2, 3, 3, 4, 4]),
        (10, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]),
    ],
)
def test_levels_by_hand(slices: int, expected: list[int]) -> None:
    assert levels_along(slices, 4).tolist() == expected


def test_levels_increase_up_to_their_number() -> None:
    for slices in range(1, 80):
        for groups in (2, 3, 4, 6, 8):
            found = levels_along(slices, groups)
            assert len(found) == slices
            assert (np.diff(found) >= 0).all()
            assert found.min() >= 1
            assert found.max() <= groups


def test_levels_are_computed_per_volume() -> None:
    cases = np.array([0] * 5 + [1] * 6 + [2])
    split = Split(np.zeros((12, 1, 2, 2), np.float32), None, cases, np.ones((12, 3)))
    assert levels(split, 4).tolist() == [1, 2, 3, 4, 4, 1, 1, 2, 2, 3, 3, 1]


def test_batches_are_balanced_over_levels_and_cover_all_images() -> None:
    kinds = torch.tensor([1] * 6 + [2] * 3 + [4] * 3)  # level 3 is empty
    with seeded(0, "views"):
        batches = list(sample_batches(kinds, 6, 4))
    assert [kinds[batch].unique(return_counts=True)[1].tolist() for batch in batches] == [[2, 2, 2]] * 4
    assert sorted(torch.cat(batches[:3])[kinds[torch.cat(batches[:3])] == 1].tolist()) == [0, 1, 2, 3, 4, 5]
    # 4 is not a multiple of 3 levels: in two batches of 4, each level occurs 2 or 3 times.
    with seeded(0, "views"):
        two = torch.cat(list(sample_batches(kinds, 4, 2)))
    assert sorted(kinds[two].unique(return_counts=True)[1].tolist()) == [2, 3, 3]
    assert [len(batch) for batch in sample_batches(kinds[:3], 32, 2)] == [3, 3]


def test_views_depend_on_the_seed_and_differ_from_each_other() -> None:
    images, views = torch.randn(4, 1, 16, 16), Views()
    found = []
    for _ in range(2):
        with seeded(0, "views"):
            found.append((views(images), views(images)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    assert found[0][0].shape == images.shape


STILL: dict[str, float] = dict.fromkeys(("flip", "turn", "zoom", "move", "contrast", "brightness", "noise"), 0.0)


def test_without_changes_a_view_is_its_image() -> None:
    images = torch.randn(3, 2, 8, 12)
    torch.testing.assert_close(Views(**STILL)(images), images, atol=1e-5, rtol=1e-5)


def test_certain_flips_mirror_and_contrast_keeps_the_mean() -> None:
    images = torch.randn(3, 1, 8, 12)
    torch.testing.assert_close(Views(**STILL | {"flip": 1})(images), images.flip(2, 3), atol=1e-5, rtol=1e-5)
    seen = Views(**STILL | {"contrast": 1.0})(images)
    torch.testing.assert_close(seen.mean((2, 3)), images.mean((2, 3)), atol=1e-5, rtol=1e-5)
    ratio = (seen.std((1, 2, 3)) / images.std((1, 2, 3))).tolist()
    assert len(set(ratio)) == 3
    assert all(1 / 2.72 < each < 2.72 for each in ratio)


def test_a_rotation_keeps_lengths_of_images_that_are_not_square() -> None:
    # A ring around the centre of 40 x 80 pixels stays a ring: the rotation is in pixels, not in fractions of the sides.
    rows, columns = np.mgrid[:40, :80]
    ring = torch.tensor(np.abs(np.hypot(rows - 19.5, columns - 39.5) - 12) < 3, dtype=torch.float32)[None, None]
    with seeded(1, "views"):
        turned = Views(**STILL | {"turn": 180})(ring)
    assert (turned - ring).abs().mean() < 0.02


def test_a_pool_takes_images_of_both_splits() -> None:
    pool = ImagePool(torch.arange(3.0)[:, None, None, None], 10 + torch.arange(2.0)[:, None, None, None])
    assert pool.take(torch.tensor([4, 0, 3, 2]), torch.device("cpu")).flatten().tolist() == [11, 0, 10, 2]
    assert len(pool) == 5


def test_pool_levels_match_the_images() -> None:
    def split(volumes: list[int]) -> Split:
        """Volumes with these numbers of slices; the brightness of a slice is its level."""
        cases = np.repeat(np.arange(len(volumes)), volumes)
        bright = np.concatenate([levels_along(count, 4) for count in volumes]).astype(np.float32)
        return Split(bright[:, None, None, None], None, cases, np.ones((len(cases), 3)))

    data = Data(split([5, 6]), split([1]), split([1]), split([8, 3]))
    found = pool_levels(data, 4)
    assert len(found) == 22
    assert ImagePool.of(data).take(torch.arange(22), torch.device("cpu")).flatten().tolist() == found.tolist()


def table(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Any:
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    arguments = [f"task.data.table={folder / 'table.csv'}", f"task.data.cache={folder / 'cache'}", "task=segmentation"]
    arguments += ["task.network={name: unet, channels: [2, 4], strides: [2]}"]
    return resolve(parse_pairs([*arguments, *(f"task.data.{k}={v}" for k, v in data.items())])).task.build()


def image_file(folder: Path, name: str) -> str:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (16, 16)).astype(np.uint8)).save(folder / name)
    return name


def image_rows(folder: Path, partition: list[Any] | None) -> list[dict[str, Any]]:
    rows = []
    for number in range(4):
        row = {"site": "a", "split": "train", "image": image_file(folder, f"i{number}.png")}
        row["label"] = image_file(folder, f"l{number}.png")
        rows.append(row | ({} if partition is None else {"partition": partition[number]}))
    return rows


def test_images_without_a_column_partition_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not slices of volumes.*column `partition`"):
        check_levels(table(tmp_path, image_rows(tmp_path, None)))


def test_the_command_refuses_images_without_levels_before_ray_starts(tmp_path: Path, capsys: Any) -> None:
    pd.DataFrame(image_rows(tmp_path, None)).to_csv(tmp_path / "table.csv", index=False)
    arguments = [
        f"task.data.table={tmp_path / 'table.csv'}",
        f"task.data.cache={tmp_path / 'cache'}",
        "task=segmentation",
    ]
    arguments += ["task.network={name: unet, channels: [2, 4], strides: [2]}", "algorithm=fcl"]
    files = {"image": image_file(tmp_path, "t.png"), "label": image_file(tmp_path, "tl.png")}
    test = {"site": "a", "split": "test"} | files
    pd.DataFrame([*image_rows(tmp_path, None), test]).to_csv(tmp_path / "table.csv", index=False)
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "not slices of volumes" in captured.err
    assert "starting Ray" not in captured.out + captured.err


def test_values_of_the_column_partition_are_sorted_as_numbers(tmp_path: Path) -> None:
    task = table(tmp_path, image_rows(tmp_path, [10, 9, 10, 2]))
    check_levels(task)
    assert levels(task.open("a").train, 4).tolist() == [3, 2, 3, 1]  # the order of numbers: 2, 9, 10


def test_an_empty_cell_of_the_column_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"column 'partition' is empty for .*i2\.png"):
        table(tmp_path, image_rows(tmp_path, ["head", "foot", None, "foot"]))


def volumes(folder: Path, unlabelled: int = 1) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(0), []
    for number, depth in enumerate((5, 6, 3)):
        nibabel.save(nibabel.Nifti1Image(rng.normal(size=(16, 16, depth)), np.eye(4)), folder / f"v{number}.nii.gz")
        row = {"site": "a", "split": "train", "image": f"v{number}.nii.gz", "label": f"m{number}.nii.gz"}
        if number >= 3 - unlabelled:
            row |= {"split": "unlabelled", "label": None}
        else:
            mask = rng.integers(0, 2, (16, 16, depth)).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"m{number}.nii.gz")
        rows.append(row)
    return rows


def test_slices_have_levels_without_label_file(tmp_path: Path) -> None:
    task = table(tmp_path, volumes(tmp_path), slices="true")
    check_levels(task)
    data = task.open("a")
    assert levels(data.train, 4).tolist() == [1, 2, 3, 4, 4, 1, 1, 2, 2, 3, 3]
    assert levels(data.unlabelled, 4).tolist() == [1, 2, 3]
    assert data.unlabelled.labels is None


def test_whole_volumes_are_refused() -> None:
    task = Synthetic(data=SyntheticData(sites=2, cases=1, val=0, test=1, size=(16, 16, 16))).build()
    with pytest.raises(ConfigError, match=r"the examples are volumes; set task\.data\.slices=true"):
        check_levels(task)


def test_the_synthetic_organ_has_a_level() -> None:
    task = Synthetic(data=SyntheticData(sites=1, cases=40, val=0, test=1)).build()
    check_levels(task)
    found = levels(task.open("site-01").train, 4)
    assert set(found.tolist()) == {1, 2, 3, 4}
