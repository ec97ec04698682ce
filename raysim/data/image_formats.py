"""Decodes image files: pictures and volumes. A new file format is added here.

Imports neither torch nor MONAI, because `raysim data describe` decodes files without them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
Dtype = np.dtype[Any]
Colour = tuple[int, ...]  # red, green, blue
IMAGE_SUFFIX = re.compile(
    r"\.(nii\.gz|nii|hdr|img|nrrd|mha|mhd|npy|npz|dcm|dicom|ome\.tiff?|png|jpe?g|tiff?|bmp|gif|jp2|j2k)$",
    re.IGNORECASE,
)
VOLUME_SUFFIX = re.compile(r"\.(nii\.gz|nii|hdr|img|nrrd|mha|mhd)$", re.IGNORECASE)
DICOM_SUFFIX = re.compile(r"\.(dcm|dicom)$", re.IGNORECASE)
EITHER_SUFFIX = re.compile(r"\.(npy|npz|dcm|dicom|ome\.tiff?)$", re.IGNORECASE)  # pictures or volumes
MAX_VOXELS = 2**30  # of a resampled volume, 4 GB as float32: a larger one would run out of memory


class DamagedImageError(ConfigError):
    """A file that a decoder cannot read. `ImageSites` adds the site to the message."""


@dataclass(frozen=True)
class Image:
    """An image and its position.

    array    (C, *space): a picture is (C, height, width), a volume (C, right, anterior, superior)
    affine   (D + 1, D + 1), voxel index to mm; a picture has 1 mm per pixel
    notes    what the reader decided where the file is ambiguous, a phrase each
    palette  of a mask that stores indices of colours: the colour of each index that occurs
    """

    array: Array
    affine: Array
    notes: tuple[str, ...] = ()
    palette: Mapping[int, Colour] = field(default_factory=dict)

    @property
    def space(self) -> tuple[int, ...]:
        """Voxels along each spatial axis."""
        return tuple(self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels along each spatial axis."""
        dims = len(self.space)
        return tuple(float(mm) for mm in np.linalg.norm(self.affine[:dims, :dims], axis=0))


def is_volume(path: str) -> bool:
    """Whether the image at this path or URL is a volume: by its name, or by its header if the format allows both."""
    name = path.partition("::")[0]
    if VOLUME_SUFFIX.search(name):
        return True
    if EITHER_SUFFIX.search(name):
        from raysim.data.image_header import spatial_axes  # not at the top: it imports this module

        return spatial_axes(path) == 3
    return not IMAGE_SUFFIX.search(name) and is_folder(path)


def is_nifti(path: str) -> bool:
    """Whether the image at this path or URL is a single NIfTI file, by its name."""
    return path.partition("::")[0].lower().endswith((".nii", ".nii.gz"))


def is_folder(path: str) -> bool:
    """Whether a path or URL is a folder, that of a DICOM series; a URL of a folder ends with a slash."""
    return path.partition("::")[0].endswith("/") if "://" in path else os.path.isdir(path)


def decoded_type(stored: Dtype, mask: bool) -> Dtype:
    """The data type of an image in memory: float32, and for a mask of integers, which is often large, its own."""
    return stored.newbyteorder("=") if mask and stored.kind in "iub" else np.dtype(np.float32)


def decode_image(file: str, stored: int, mask: bool = False, colours: bool = False) -> Image:
    """The image with its stored values; `file` is a local path. A mask with `colours` is (3, height, width).

    Raises ConfigError, without the file's name, for an image that cannot be used, and for one that takes more memory
    than a file of `stored` bytes may take, and the errors of the libraries for a damaged file.
    """
    from raysim.data import picture_formats, volume_formats  # not at the top: they import this module

    if decode := volume_formats.decoder(file):
        return decode(file, stored, mask)
    return picture_formats.decode_picture(file, stored, mask, colours)


def grid_distance(image: Image, other: Image) -> float:
    """The largest distance between corners of the two grids, in voxels of `image` along each axis."""
    upper = np.array([size - 1 for size in image.space])
    corners = np.stack([upper * bits for bits in np.ndindex(*[2] * len(upper))])
    indices = np.hstack([corners, np.ones((len(corners), 1))])
    moved = np.linalg.solve(image.affine, other.affine @ indices.T).T
    return float(np.abs(moved - indices).max())


def voxels_text(distance: float) -> str:
    """A distance in voxels for messages, with three significant digits."""
    return f"{distance:.3g} voxels" if math.isfinite(distance) else "an unknown distance"
