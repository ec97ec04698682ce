"""Predictions on the grid of the image: the inverse of padding, cropping, resizing and spacing; the written files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as PillowImage

from raysim.data.case_preparation import CasePreparation
from raysim.data.image_formats import Image
from raysim.data.image_reader import read_image
from raysim.data.nonzero_box import crop
from raysim.data.prediction_grid import CROPPED_LOGIT, restore_logits, restore_slabs
from raysim.data.prediction_writer import Source, write_mask
from raysim.data.resample import resample_volume, resampled_grid


def preparation(
    fit: str = "pad",
    size: tuple[int, ...] | None = None,
    spacing: tuple[float, ...] | None = None,
    slices: bool = False,
) -> CasePreparation:
    return CasePreparation(None, "none", fit, size, spacing, slices, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("old", range(1, 8))
@pytest.mark.parametrize("new", range(1, 8))
def test_padding_and_cropping_are_inverted(old: int, new: int) -> None:
    image = np.arange(1, 1 + 3 * old, dtype=np.float32).reshape(1, old, 3)
    prepared = preparation(size=(new, 3))
    examples = prepared._fit_size(image[None], "nearest")
    restored = restore_logits(np.repeat(examples, 2, 1), Image(image, np.eye(3)), prepared)
    kept = np.isin(image[0], examples)
    assert np.array_equal(restored[0][kept], image[0][kept])
    assert kept.sum() == 3 * min(old, new)
    assert (restored[0][~kept] == CROPPED_LOGIT).all()
    assert (restored[1][~kept] == -CROPPED_LOGIT).all()


def test_resized_logits_are_interpolated_linearly() -> None:
    logits = np.array([[[0.0, 2.0]], [[1.0, 1.0]]], np.float32)[None]  # (1, 2, 1, 2)
    restored = restore_logits(logits, Image(np.zeros((1, 1, 4), np.float32), np.eye(3)), preparation("resize", (1, 2)))
    assert restored[0, 0].tolist() == [0.0, 0.5, 1.5, 2.0]


def test_spacing_is_inverted_for_volumes_and_slices() -> None:
    image = Image(np.zeros((1, 9, 7, 5), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    ramp = np.arange(5, dtype=np.float32) * 2  # mm along the first axis of the resampled grid, which has 5 voxels
    logits = np.broadcast_to(ramp.reshape(1, 1, 5, 1, 1), (1, 2, 5, 7, 5))
    restored = restore_logits(logits, image, preparation(spacing=(2.0, 2.0, 3.0)))
    assert np.allclose(restored[0, :, 3, 2], np.arange(9))
    sliced = np.moveaxis(logits[0], -1, 0)
    assert np.array_equal(restore_logits(sliced, image, preparation(spacing=(2.0, 2.0), slices=True)), restored)


@pytest.mark.parametrize("cropped", [True, False])
@pytest.mark.parametrize(
    ("spacing", "slices"),
    [(None, False), (None, True), ((1.3, 2.0, 2.5), False), ((3.1, 1.0), True), ((0.6, 0.9, 3.0), False)],
)
def test_slabs_are_restored_as_all_logits_together(
    spacing: tuple[float, ...] | None, slices: bool, cropped: bool
) -> None:
    array, affine = np.zeros((1, 45, 9, 7), np.float32), np.eye(4)
    array[0, 3:41, 1:, 2:6] = 1
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([1.0, 2.0, 3.0])
    image, prepared = Image(array, affine), replace(preparation(spacing=spacing, slices=slices), crop_nonzero=cropped)
    kept = crop(image, prepared.kept_box(image))
    grid = kept if spacing is None else resampled_grid(kept, spacing)
    logits = np.random.default_rng(0).normal(size=(2, *grid.space)).astype(np.float32)
    expected = restore_logits(np.moveaxis(logits, -1, 0) if slices else logits[None], image, prepared)
    axis = 3 if slices else 1
    slabs = np.split(logits, range(1, grid.space[-1]) if slices else [11, 12, 30], axis)
    found = expected * 0 + np.where(np.arange(2) == 0, CROPPED_LOGIT, -CROPPED_LOGIT).reshape(2, 1, 1, 1)
    for position, part in restore_slabs(slabs, image, prepared.kept_box(image), prepared):
        assert part.shape[axis] <= max(16, *(slab.shape[axis] for slab in slabs))
        found[(slice(None), *position)] = part
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("spacing", [(1.3, 2.0, 2.5), (2.0, 3.0), (0.4, 0.5, 0.6)])
def test_the_grid_of_a_resampled_volume(spacing: tuple[float, ...]) -> None:
    image = Image(
        np.ones((1, 9, 7, 5), np.float32), np.array([[-1, 0.1, 0, 5], [0.1, 2, 0, 7], [0, 0, 3, 3], [0, 0, 0, 1]])
    )
    expected, found = resample_volume(image, spacing, "nearest"), resampled_grid(image, spacing)
    assert found.space == expected.space
    assert np.array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_a_written_volume_is_read_again_with_the_same_classes(codes: str, tmp_path: Path) -> None:
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    source = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    source = source.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), ornt))
    source.header.set_sform(source.affine, 1)
    nibabel.save(source, tmp_path / "image.nii.gz")
    indices = np.random.default_rng(0).integers(0, 3, (3, 4, 5))
    write_mask(
        tmp_path / "mask.nii.gz",
        indices,
        Source(str(tmp_path / "image.nii.gz"), np.eye(4)),
        {"a": 0, "b": 4, "c": 300},
        None,
    )
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(written.affine, source.affine)
    assert written.header["sform_code"] == 1
    assert np.array_equal(read_image(str(tmp_path / "mask.nii.gz"), mask=True).array[0], np.array([0, 4, 300])[indices])


def test_a_written_picture_has_the_colours_of_the_classes(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [1, 0]])
    write_mask(
        tmp_path / "m.png", indices, Source("x.jpg", np.eye(3)), {"a": 0, "b": 1}, {"a": (0, 0, 0), "b": (255, 128, 0)}
    )
    assert np.asarray(PillowImage.open(tmp_path / "m.png"))[0].tolist() == [[0, 0, 0], [255, 128, 0]]
    write_mask(tmp_path / "m.png", indices, Source("x.jpg", np.eye(3)), {"a": 0, "b": 1000}, None)
    assert np.asarray(PillowImage.open(tmp_path / "m.png")).tolist() == [[0, 1000], [1000, 0]]
    write_mask(
        tmp_path / "m.png", indices, Source("x.jpg", np.eye(3)), {"a": 0, "b": 1}, {"a": (0, 0, 0), "b": (65535, 1, 0)}
    )
    assert read_image(str(tmp_path / "m.png"), mask=True, colours=True).array[:, 0, 1].tolist() == [65535, 1, 0]
