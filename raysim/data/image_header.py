"""Whether a file has a volume or a picture, from its header, for formats that may have either."""

from __future__ import annotations

import os
from functools import lru_cache

from raysim.data.image_formats import DICOM_SUFFIX, is_folder
from raysim.data.volume_formats import NUMPY


def spatial_axes(path: str) -> int:
    """The number of spatial axes of a file; 2 for one that cannot be read, which is refused when it is decoded."""
    try:
        return _read_axes(path)
    except Exception:  # noqa: BLE001 - a damaged file may raise any error
        return 2


def check_readable(path: str) -> None:
    """Raises ConfigError, as when the image is read, for an image whose header cannot be read."""
    from raysim.data.image_reader import read_image  # not at the top: it imports image_formats

    try:
        _read_axes(path)
    except Exception:  # noqa: BLE001 - a damaged file may raise any error
        read_image(path)


def _read_axes(path: str) -> int:
    return _axes_of_url(path) if "://" in path else _cached_axes(path, os.stat(path).st_mtime_ns)


@lru_cache(100_000)
def _axes_of_url(path: str) -> int:
    from raysim.data.image_reader import local_copy

    with local_copy(path) as (file, _):
        return _cached_axes(file, os.stat(file).st_mtime_ns)


@lru_cache(100_000)
def _cached_axes(file: str, _: int) -> int:
    """`spatial_axes` of a local file. The cache depends on its modification time; each image is checked repeatedly."""
    from raysim.data.dicom_format import spatial_axes as dicom_axes
    from raysim.data.numpy_format import array_dimensions, open_array

    if is_folder(file):
        return 3
    if DICOM_SUFFIX.search(file):
        return dicom_axes(file)
    if NUMPY.search(file):
        with open_array(file) as (_stream, shape, _fortran, _dtype):
            return array_dimensions(shape) or 2
    return _tiff_axes(file)


def _tiff_axes(file: str) -> int:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        return 3 if len(tiff.pages) > 1 else 2
