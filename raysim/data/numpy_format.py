"""Decodes numpy arrays (`.npy`, and `.npz` with one array), without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Dtype, Image
from raysim.data.voxel_stream import StoredVoxels, read_volume, read_voxels

COLOUR_CHANNELS = (1, 3)  # lengths of the last axis of a picture
NO_POSITION = "an array has no position; its axes are read as right, anterior, superior, with 1 mm between voxels"


def decode_array(file: str, stored: int, mask: bool) -> Image:
    """A picture (C, height, width) from an array (height, width[, C]), or a volume (C, x, y, z) from (x, y, z[, C]).

    Raises ConfigError for an array of another kind, and for one that takes more memory than a file of `stored` bytes
    may take.
    """
    with open_array(file) as (stream, shape, fortran, dtype):
        if (dims := array_dimensions(shape)) is None:
            raise ConfigError(
                f"is an array {shape}; expected (height, width), (height, width, 1 or 3), (x, y, z) or "
                "(x, y, z, channels)"
            )
        in_file = shape if fortran else shape[::-1]
        if dims == 3:
            channel_axis = None if len(shape) == 3 else 3 if fortran else 0
            affine = np.eye(4)
            # The first axis in a file in C order is the last of the array.
            affine[:3, :3] = np.eye(3) if fortran else np.eye(3)[::-1]
            return read_volume(stream, StoredVoxels(dtype, in_file, channel_axis), affine, stored, mask, (NO_POSITION,))
        array = read_voxels(stream, StoredVoxels(dtype, in_file), stored, mask)
    array = array if fortran else array.T
    return Image(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), np.eye(3))


def array_dimensions(shape: tuple[int, ...]) -> int | None:
    """The number of spatial axes of an array, 2 or 3; None for an array that is no image."""
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in COLOUR_CHANNELS):
        return 2
    return 3 if len(shape) in (3, 4) else None


@contextmanager
def open_array(file: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, Dtype]]:
    """The stream after the header, the shape, whether the first axis varies fastest, and the type of an array."""
    with open(file, "rb") as content:
        is_archive = content.read(4) == b"PK\3\4"
        content.seek(0)
        if not is_archive:
            yield content, *read_array_header(content)
            return
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise ConfigError(f"has the arrays {', '.join(sorted(names)[:5])}; store one array in each file")
        with archive.open(names[0]) as stream:
            yield stream, *read_array_header(stream)


def read_array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Dtype]:
    """The shape, whether the first axis varies fastest, and the type of an array in numpy's format."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ConfigError("has Python objects, which are not read; store an array of numbers")
    return shape, fortran, dtype
