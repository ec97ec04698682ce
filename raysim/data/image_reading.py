"""Reads pictures (PNG, JPEG, TIFF, BMP) and NIfTI volumes, from this machine or any URL."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import fsspec.core
import numpy as np
from monai.data.image_reader import NibabelReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation
from monai.transforms.utility.array import EnsureChannelFirst

from raysim.core.errors import ConfigError
from raysim.data.image_pixels import check_volume, pixels

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Image:
    """What a file shows: array (C, *space), float32, and where it lies.

    A picture is (C, height, width) at 1 mm a pixel; a volume (C, right, anterior, superior) in mm.
    """

    array: Array
    affine: Array  # (D + 1, D + 1), voxel to mm

    @property
    def space(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels along each axis of space."""
        dims = len(self.space)
        return tuple(float(mm) for mm in np.linalg.norm(self.affine[:dims, :dims], axis=0))


def is_volume(path: str) -> bool:
    """Whether the file is a NIfTI volume, by its name."""
    return path.partition("::")[0].lower().endswith((".nii", ".nii.gz"))


def read(path: str, mask: bool = False) -> Image:
    """The image in a file; of a mask, the values as stored. Raises ConfigError naming the file."""
    try:
        with _local(path) as file:
            image = _volume(file) if is_volume(path) else Image(_flat(file, mask), np.eye(3))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # readers raise whatever they like on a broken file
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not np.isfinite(image.array).all():
        raise ConfigError(f"{path}: has values that are no numbers (NaN or infinite); replace them in the file")
    return image


@contextmanager
def _local(path: str) -> Iterator[str]:
    """A path on this machine, to a copy that goes away where `path` is a URL."""
    if "://" not in path:
        yield path
        return
    store, name = fsspec.core.url_to_fs(path)
    with tempfile.TemporaryDirectory(prefix="raysim-") as folder:
        copy = os.path.join(folder, os.path.basename(name))
        store.get_file(name, copy)
        yield copy


def _flat(file: str, mask: bool) -> Array:
    return np.ascontiguousarray(pixels(file, mask), np.float32)


def _volume(file: str) -> Image:
    reader = NibabelReader()
    # Not by LoadImage, which hides why a file cannot be read behind advice on what to install.
    check_volume((volume := reader.read(file)).shape)
    array, meta = reader.get_data(volume)
    loaded = EnsureChannelFirst()(MetaTensor(array, meta=meta))
    if loaded.ndim != 4:
        raise ConfigError(f"a volume must have three axes of space, this one has {loaded.ndim - 1}")
    turned = cast(MetaTensor, Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(loaded))
    return Image(turned.numpy().astype(np.float32), turned.affine.numpy())
