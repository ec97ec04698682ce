"""Segmentation of images of different sizes by patches: preparation, training batches, sliding window, wrong keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers.inferer import SlidingWindowInferer
from pydantic import TypeAdapter
from torch import Tensor

from raysim.core.contracts import Predictor, Split, Task
from raysim.core.errors import ConfigError
from raysim.core.seeding import seed_all
from raysim.core.whole_images import WholeImages
from raysim.tasks.prediction import predict_cases, predict_slabs
from raysim.tasks.segmentation import Segmentation
from raysim.training.batching import batches

NETWORK = {"name": "unet", "channels": [4, 8], "strides": [2], "num_res_units": 0}
SIZES = {"a": [(9, 12, 10), (8, 8, 8)], "b": [(14, 8, 9), (6, 11, 8)]}


def build(folder: Path, window: dict[str, Any] | None = None, **data: Any) -> Task:
    """The task of `folder/table.csv` with patches of 8 x 8 x 8."""
    data = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), "patch": [8, 8, 8], **data}
    keys = {"data": data, "network": NETWORK, "window": window or {}, "batch_size": 2}
    return TypeAdapter(Segmentation).validate_python(keys).build()


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two sites with volumes of different sizes; the label is a bright box."""
    random, lines = np.random.default_rng(0), ["site,split,image,label"]
    for site, sizes in SIZES.items():
        for split, number in [("train", 0), ("train", 1), ("test", 0)]:
            label = np.zeros(sizes[number], np.uint8)
            label[2:5, 3:6, 1:4] = 1
            image = random.normal(size=sizes[number]) + 4 * label
            for name, array in (("image", image), ("label", label)):
                nib.save(
                    nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / f"{site}{split}{number}{name}.nii"
                )
            lines.append(f"{site},{split},{site}{split}{number}image.nii,{site}{split}{number}label.nii")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path


def brightness(inputs: Tensor) -> Tensor:
    """A predictor of two classes: the smoothed brightness of a voxel."""
    smooth = torch.nn.functional.avg_pool3d(inputs, 3, stride=1, padding=1)
    return torch.cat([1 - smooth, smooth - 1], 1)


def whole(split: Split) -> Any:
    assert split.images is not None
    return split.images


def test_images_keep_their_size_and_examples_are_patches(volumes: Path) -> None:
    task = build(volumes, patches_per_image=3)
    assert task.shape == (1, 8, 8, 8)
    assert task.sizes["a"] == {"train": 6, "val": 0, "test": 3, "unlabelled": 0}
    data = task.open("a")
    assert [image.shape for image in whole(data.train).images] == [(1, 9, 12, 10), (1, 8, 8, 8)]
    assert isinstance(whole(data.train).images[0], np.memmap)
    assert data.train.inputs.shape == (6, 1, 8, 8, 8)
    assert data.train.labels is not None
    assert data.train.labels.shape == (6, 1, 8, 8, 8)
    assert data.train.sources.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.cases.tolist() == [0, 0, 0, 1, 1, 1]


def test_patches_are_cut_from_the_prepared_images(volumes: Path) -> None:
    train = build(volumes, positive=1.0).open("b").train
    windows = np.lib.stride_tricks.sliding_window_view(whole(train).images[0][0], (8, 8, 8)).reshape(-1, 8, 8, 8)
    for patch in train.inputs[train.sources == 0]:
        assert (windows == patch[0]).all((1, 2, 3)).any()
    labels = train.labels
    assert labels is not None
    assert all(label.any() for label in labels)


def test_training_draws_new_patches_with_the_seed_of_the_call(volumes: Path) -> None:
    train = build(volumes).open("a").train

    def draw(seed: int) -> list[Tensor]:
        seed_all(seed)
        return [inputs for inputs, _ in batches(train, 2, 9, torch.device("cpu"))]

    first, again, other = draw(0), draw(0), draw(1)
    assert len(first) == 9
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert not torch.equal(first[0], torch.from_numpy(np.array(train.inputs[:2])))


def logits(predict: Predictor, images: WholeImages) -> Tensor:
    """The logits (1, K, *space) of the first image."""
    slabs = predict_slabs(predict, images, 0, 2, torch.device("cpu"))
    return torch.cat([slab.clone() for slab in slabs], 1)[None]


@pytest.mark.parametrize("gaussian", [True, False])
def test_a_whole_image_is_predicted_as_by_monai(volumes: Path, gaussian: bool) -> None:
    test = build(volumes, {"overlap": 0.25, "gaussian": gaussian, "batch_size": 3}).open("b").test
    images = whole(test)
    found = logits(brightness, images)
    mode = "gaussian" if gaussian else "constant"
    image = torch.from_numpy(np.array(images.images[0]))[None]
    expected = SlidingWindowInferer((8, 8, 8), 1, 0.25, mode=mode)(image, brightness)
    assert found.shape == (1, 2, 14, 8, 9)
    assert torch.allclose(found.softmax(1), expected.softmax(1), rtol=0, atol=1e-6)  # type: ignore[union-attr]


def test_mirrored_predictions_are_averaged(volumes: Path) -> None:
    def one_sided(inputs: Tensor) -> Tensor:
        return torch.cat([inputs, inputs.roll(1, 2)], 1)

    test = build(volumes, {"overlap": 0, "mirror": [0]}).open("a").test
    images = whole(test)
    found = logits(one_sided, images)[0, 1, :8, :8, :8]
    patch = images.images[0][0, :8, :8, :8]
    expected = (np.roll(patch, 1, 0) + np.roll(patch[::-1], 1, 0)[::-1]) / 2
    # Along the other axes windows of overlap 0 are shifted at the border, but this predictor is equal in all of them.
    assert np.allclose(found.numpy()[1:-1], expected[1:-1], atol=1e-5) or images.images[0].shape[1] > 8


def test_scores_and_cases_are_those_of_whole_images(volumes: Path) -> None:
    task = build(volumes)
    test = task.open("a").test
    metrics = task.score(brightness, test, torch.device("cpu"))
    ((number, case),) = predict_cases(brightness, test, 2, 2, torch.device("cpu"))
    assert number == 0
    assert case.labels.shape == case.predicted.shape == (1, 9, 12, 10)
    overlap = 2 * (case.labels & case.predicted).sum() / (case.labels.sum() + case.predicted.sum())
    assert metrics["dice"] == pytest.approx(overlap)
    assert 0.5 < overlap < 1


def test_slices_of_volumes_of_any_size(volumes: Path) -> None:
    task = build(volumes, slices=True, patch=[8, 8], patches_per_image=1)
    assert task.shape == (1, 8, 8)
    train = task.open("a").train
    assert len(train) == 10 + 8
    assert whole(train).images[0].shape == (1, 9, 12)
    assert train.spacing.shape == (18, 3)

    def flat(inputs: Tensor) -> Tensor:
        return torch.cat([1 - inputs, inputs - 1], 1)

    ((_, case),) = predict_cases(flat, task.open("b").test, 2, 2, torch.device("cpu"))
    assert case.predicted.shape == (9, 14, 8)
    overlap = 2 * (case.labels & case.predicted).sum() / (case.labels.sum() + case.predicted.sum())
    assert task.score(flat, task.open("b").test, torch.device("cpu"))["dice"] == pytest.approx(overlap)


def test_another_patch_uses_the_prepared_images(volumes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cached(volumes, build(volumes))}
    after = cached(volumes, build(volumes, patch=[4, 4, 4], positive=0.1))
    assert before == {path: path.stat().st_mtime_ns for path in after}


def cached(folder: Path, task: Task) -> list[Path]:
    """The files of the whole images."""
    assert task.inside
    return sorted((folder / "cache").glob("*/*.images.voxels.npy"))


def test_images_are_cropped_to_nonzero_values(volumes: Path) -> None:
    image = np.zeros((10, 9, 8), np.float32)
    image[2:7, 3:8, 1:5] = np.arange(100).reshape(5, 5, 4) + 1
    label = (image > 50).astype(np.uint8)
    nib.save(nib.Nifti1Image(image, np.eye(4)), volumes / "atrain0image.nii")
    nib.save(nib.Nifti1Image(label, np.eye(4)), volumes / "atrain0label.nii")
    train = build(volumes, crop_nonzero=True, patch=[4, 4, 4], intensity="none").open("a").train
    assert np.array_equal(whole(train).images[0][0], image[2:7, 3:8, 1:5])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size": [8, 8, 8]}, "task.data.patch=[8, 8, 8] keeps the size of each image, but task.data.size=[8, 8, 8]"),
        ({"patch": [8, 8]}, "task.data.patch=[8, 8] has 2 numbers, but images have 3 axes"),
        ({"patch": [8, 8, 8], "slices": True}, "task.data.patch=[8, 8, 8] has 3 numbers, but images have 2 axes"),
    ],
)
def test_wrong_keys(volumes: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(volumes, **keys)


def test_an_axis_to_mirror_must_exist(volumes: Path) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        build(volumes, {"mirror": [2]}, slices=True, patch=[8, 8])
