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
from monai.transforms.io.array import LoadImage
from monai.transforms.spatial.array import Orientation
from PIL import Image as Pillow

from raysim.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
COLOUR = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "1": "L"}


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
            image = _volume(file) if is_volume(path) else _picture(file, mask)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # readers raise whatever they like on a broken file
        raise ConfigError(f"{path}: cannot be read as an image: {error}") from error
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


def _picture(file: str, mask: bool) -> Image:
    with Pillow.open(file) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ConfigError("has several pages; store each as a picture of its own")
        # The numbers of a palette are a mask's classes, and its colours are for the eye only.
        plain = picture if mask or picture.mode not in COLOUR else picture.convert(COLOUR[picture.mode])
        array = np.atleast_3d(np.asarray(plain, np.float32)).transpose(2, 0, 1)
    if mask:
        array = array[: {2: 1, 4: 3}.get(len(array), len(array))]  # without its alpha channel
        if (array != array[0]).any():
            raise ConfigError("a mask must be grey, one value per class; this one is coloured")
        array = array[:1]
    return Image(np.ascontiguousarray(array), np.eye(3))


def _volume(file: str) -> Image:
    loaded = LoadImage(reader=NibabelReader(), ensure_channel_first=True)(file)
    if loaded.ndim != 4:
        raise ConfigError(f"a volume must have three axes of space, this one has {loaded.ndim - 1}")
    turned = cast(MetaTensor, Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(loaded))
    return Image(turned.numpy().astype(np.float32), turned.affine.numpy())
