"""Orientation, spacing and position of volumes. Values by hand, and from nibabel's affine."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from raysim.core.errors import ConfigError
from raysim.data.file_inspection import inspect_case
from raysim.data.image_formats import Image, grid_distance
from raysim.data.image_reader import position_problem, read_image


def save(path: Path, affine: np.ndarray, dtype: type = np.uint8, **header: object) -> str:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), dtype), affine, dtype=dtype)
    for name, value in header.items():
        image.header[name] = value
    image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
    path.write_bytes(image.header.binaryblock + bytes(4) + np.zeros((4, 5, 6), dtype).tobytes())
    return str(path)


def test_a_coded_sform_is_used_and_the_disagreement_is_noted(tmp_path: Path) -> None:
    affine = np.diag([-1.4, -1.4, 10, 1])
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    image.header.set_sform(affine, 2)
    image.header["qform_code"], image.header["pixdim"][1:4] = 0, 1
    nibabel.save(image, tmp_path / "x.nii")
    read = read_image(str(tmp_path / "x.nii"))
    assert read.spacing == pytest.approx((1.4, 1.4, 10))
    assert read.array[0, 3, 4, 0] == 0  # both axes are turned
    assert read.notes == ("its sform and its voxel sizes (pixdim) differ; the sform has a code and is used",)
    statistics = inspect_case(str(tmp_path / "x.nii"), None).statistics
    assert statistics is not None
    assert statistics.spacing == read.spacing


def test_the_qform_is_used_without_a_coded_sform_and_pixdim_without_both(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.header.set_qform(np.diag([-2.0, 3, 4, 1]), 1)
    image.header.set_sform(np.diag([9.0, 9, 9, 1]), 0)
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), tmp_path / "q.nii")
    read = read_image(str(tmp_path / "q.nii"))
    assert (read.spacing, read.notes) == ((2, 3, 4), ())
    plain = read_image(save(tmp_path / "p.nii", np.diag([2.0, 3, 4, 1]), qform_code=0, sform_code=0))
    assert plain.spacing == (2, 3, 4)
    assert plain.notes[0].startswith("it has neither an sform nor a qform")


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_lengths_are_converted_to_mm(tmp_path: Path, unit: int, mm: float) -> None:
    affine = np.array([[2.0, 0, 0, 7], [0, 3, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1]])
    read = read_image(save(tmp_path / "x.nii", affine, xyzt_units=unit + 8))  # 8: the time is in seconds
    assert read.spacing == pytest.approx((2 * mm, 3 * mm, 4 * mm))
    assert read.affine[:3, 3] == pytest.approx([7 * mm, 8 * mm, 9 * mm])
    assert len(read.notes) == (unit in (1, 3))


def test_invalid_headers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unit of length 5 \(xyzt_units\)"):
        read_image(save(tmp_path / "unit.nii", np.eye(4), xyzt_units=5))
    with pytest.raises(ConfigError, match="does not give each voxel a position"):
        read_image(save(tmp_path / "flat.nii", np.eye(4), srow_z=(0, 0, 0, 0), sform_code=1))
    with pytest.raises(ConfigError, match="its data type is complex64"):
        read_image(save(tmp_path / "complex.nii", np.eye(4), np.complex64))


def grid(affine: np.ndarray) -> Image:
    return Image(np.zeros((1, 16, 16, 8)), affine)


def test_the_distance_of_two_grids_is_in_voxels_at_the_corners() -> None:
    fine, coarse = grid(np.diag([0.05, 0.05, 0.05, 1])), grid(np.diag([0.08, 0.08, 0.08, 1]))
    assert grid_distance(fine, coarse) == pytest.approx(15 * 0.6)  # 0.03 mm more per voxel
    moved = np.diag([2.0, 2, 2, 1])
    moved[0, 3] = 0.19
    assert grid_distance(grid(np.diag([2.0, 2, 2, 1])), grid(moved)) == pytest.approx(0.095)
    assert position_problem(grid(np.diag([2.0, 2, 2, 1])), grid(moved)) is None
    moved[0, 3] = 0.21
    assert "0.105 voxels" in str(position_problem(grid(np.diag([2.0, 2, 2, 1])), grid(moved)))


@pytest.mark.parametrize(("shear", "degrees"), [(0.5, 27), (0.01, None), (0.0, None)])
def test_axes_that_are_not_perpendicular_are_noted(tmp_path: Path, shear: float, degrees: int | None) -> None:
    """The metrics in mm use the voxel sizes, as if the axes were perpendicular."""
    affine = np.diag([2.0, 2, 3, 1])
    affine[0, 1] = 2 * shear
    notes = read_image(save(tmp_path / "x.nii", affine, sform_code=2, srow_x=affine[0], pixdim=sizes(affine))).notes
    expected = f"its axes are up to {degrees} degrees from perpendicular; distances in mm"
    assert [note.startswith(expected) for note in notes] == [True] * (degrees is not None)


def sizes(affine: np.ndarray) -> list[float]:
    """The field `pixdim` of this affine."""
    return [1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1]
