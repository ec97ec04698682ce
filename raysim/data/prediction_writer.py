"""Writes masks and probabilities on the grid of their image: NIfTI for volumes, PNG and npz for pictures."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.atomic_io import replacing
from raysim.data.image_formats import Colour, is_nifti
from raysim.data.image_reader import local_copy

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Source:
    """The image of a prediction: its path or URL, and its affine as read."""

    path: str
    affine: Array


def write_mask(
    path: Path, indices: Array, image: Source, values: Mapping[str, int], colours: Mapping[str, Colour] | None
) -> None:
    """Write class indices (*space) to `path`, with the value of each class in `values`, or its colour in `colours`.

    The mask of a NIfTI volume has the orientation and the affine of the file. The mask of another volume has those of
    the reader, like `indices`. Writes atomically.
    """
    if is_nifti(path.name):
        _write_nifti(path, _with_values(indices, values), image)
        return
    import imagecodecs  # Pillow cannot write colours of 16 bits

    colour_table = np.array([*(colours or {}).values()])
    pixels = _with_smallest_type(colour_table)[indices] if colours else _with_values(indices, values)
    with replacing(path) as partial:
        partial.write_bytes(imagecodecs.png_encode(pixels))


def write_probabilities(path: Path, probabilities: Array, image: Source) -> None:
    """Write the probability of each class (K, *space): a NIfTI file with the classes on axis 4, or `probabilities` of
    an npz file. Writes atomically.
    """
    if is_nifti(path.name):
        _write_nifti(path, np.moveaxis(probabilities, 0, -1), image)
        return
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, probabilities=probabilities)


def _with_values(indices: Array, values: Mapping[str, int]) -> Array:
    """The value of the class of each voxel."""
    return _with_smallest_type(np.array(list(values.values())))[indices]


def _with_smallest_type(table: Array) -> Array:
    """The table with the smallest type of unsigned integers that can hold its values."""
    return table.astype(np.min_scalar_type(table.max()))


def _write_nifti(path: Path, array: Array, image: Source) -> None:
    """Write (right, anterior, superior[, K]) with the header, the orientation and the affine of a NIfTI file `image`.

    For an image of another format, the file has its affine, in mm.
    """
    import nibabel

    if not is_nifti(image.path):
        plain = nibabel.Nifti1Image(array, image.affine)
        plain.header.set_xyzt_units("mm")
        _write_compressed(path, plain.to_bytes())
        return
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    with local_copy(image.path) as (file, _):
        source: Any = nibabel.load(file)
        affine, header = source.affine, source.header.copy()
    from_ras = ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), io_orientation(affine))
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the range of the image's intensities
    header.extensions.clear()  # they may describe the patient
    made = type(source)(np.ascontiguousarray(apply_orientation(array, from_ras)), affine, header)
    _write_compressed(path, made.to_bytes())


def _write_compressed(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
