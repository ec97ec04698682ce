"""Reads one image from a local path or a URL, for training and for `raysim data describe`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import fsspec.core
import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.file_paths import check_url, stored_bytes
from raysim.data.image_formats import (
    DICOM_SUFFIX,
    Array,
    DamagedImageError,
    Image,
    decode_image,
    decoded_type,
    grid_distance,
    is_folder,
    voxels_text,
)
from raysim.data.mask_colours import check_palette, round_labels
from raysim.data.memory_limit import check_memory

FIRST_INEXACT = 2**24  # float32 has all whole numbers below it
POSITION_TOLERANCE = 0.1  # voxels between the corners of an image and of its mask


class NotFiniteError(ConfigError):
    """An image has values that are NaN or infinite."""


def read_image(path: str, mask: bool = False, colours: bool = False) -> Image:
    """The image with its stored values as float32, all finite. Raises ConfigError naming the file.

    A mask is (1, *space) with its values, or (3, height, width) with its colours; integers keep their data type.
    """
    try:
        image = load_image(path, mask, colours)
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist") from None
    except ConfigError as error:
        kind = DamagedImageError if isinstance(error, DamagedImageError) else ConfigError
        raise kind(f"{path}: {error}") from error
    if not is_finite(image.array):
        raise NotFiniteError(f"{path}: has values that are NaN or infinite; replace them with numbers in the file")
    return image


def load_image(path: str, mask: bool = False, colours: bool = False) -> Image:
    """The image as in `read_image`, with values that may be NaN or infinite.

    Raises ConfigError without the name of the file for an image that cannot be used.

    Raises FileNotFoundError if there is no file.
    """
    try:
        with local_copy(path) as (file, stored):
            image = decode_image(file, stored, mask, colours)
    except (ConfigError, FileNotFoundError):
        raise
    except Exception as error:  # the decoders raise errors of many types for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImageError(f"cannot be read: {reason}; replace it with an intact file") from error
    if mask:
        check_palette(image.palette)
        _check_exact(image)
    # A volume keeps the memory order of its file: the rounding of sums over voxels depends on it.
    with np.errstate(over="ignore"):  # infinite values are refused
        kind = decoded_type(image.array.dtype, mask)
        array = image.array.astype(kind, order="K" if image.array.ndim == 4 else "C", copy=False)
    if mask and kind == np.float32:
        round_labels(array)
    return replace(image, array=array)


def is_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite. A large array is not copied."""
    return bool(np.isfinite([array.min(initial=0), array.max(initial=0)]).all())


def position_problem(image: Image, mask: Image) -> str | None:
    """A phrase with the distance of the mask from its image in voxels, if it exceeds POSITION_TOLERANCE; else None."""
    if (distance := grid_distance(image, mask)) <= POSITION_TOLERANCE:
        return None
    return f"by up to {voxels_text(distance)} at the corners; expected at most {POSITION_TOLERANCE:g}"


def on_grid_of(scan: Image, mask: Image, path: str) -> Image:
    """The mask on the grid of its image, if it is a DICOM segmentation of a part of the slices; else unchanged."""
    if not DICOM_SUFFIX.search(path) or len(scan.space) != 3 or len(mask.space) != 3:
        return mask
    from raysim.data.dicom_segmentation import paste  # not at the top: few masks need it

    return paste(mask, scan)


def _check_exact(mask: Image) -> None:
    largest = max(float(mask.array.max(initial=0)), -float(mask.array.min(initial=0)))
    if np.isfinite(largest) and largest >= FIRST_INEXACT:
        raise ConfigError(f"has the label value {largest:.0f}; label values are supported below {FIRST_INEXACT}")


@contextmanager
def local_copy(path: str) -> Iterator[tuple[str, int]]:
    """A local path of the image, and its stored bytes; the files of a URL are copied into a temporary folder."""
    if "://" not in path:
        yield path, stored_bytes(path)
        return
    store, name = fsspec.core.url_to_fs(check_url(path))
    stored = stored_bytes(path)
    if is_folder(path):
        check_memory(store.du(name), stored)
        with tempfile.TemporaryDirectory(prefix="raysim-") as folder:
            for file in store.find(name, maxdepth=1):
                store.get_file(file, os.path.join(folder, os.path.basename(file)))
            yield folder, stored
        return
    check_memory(store.size(name) or 0, stored)  # a temporary folder may be in memory
    with tempfile.TemporaryDirectory(prefix="raysim-") as folder:
        copy = os.path.join(folder, os.path.basename(name))
        store.get_file(name, copy)
        yield copy, stored
