"""Reads one image from a local path or a URL, as float32, for training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec.core
import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Image, decode_image, is_volume


def read_image(path: str, mask: bool = False) -> Image:
    """The image with its stored values as float32, all finite. Raises ConfigError naming the file."""
    try:
        with _local_copy(path) as file:
            decoded = decode_image(file, is_volume(path), mask)
            # A volume keeps the memory order of its file: the rounding of sums over voxels depends on it.
            image = Image(decoded.array.astype(np.float32, order="K" if is_volume(path) else "C"), decoded.affine)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # nibabel and Pillow raise errors of many types for a damaged file
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not np.isfinite(image.array).all():
        raise ConfigError(f"{path}: has values that are NaN or infinite; replace them with numbers in the file")
    return image


@contextmanager
def _local_copy(path: str) -> Iterator[str]:
    """A local path of the file; the file of a URL is copied into a temporary folder."""
    if "://" not in path:
        yield path
        return
    store, name = fsspec.core.url_to_fs(path)
    with tempfile.TemporaryDirectory(prefix="raysim-") as folder:
        copy = os.path.join(folder, os.path.basename(name))
        store.get_file(name, copy)
        yield copy
