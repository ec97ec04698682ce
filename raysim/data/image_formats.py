"""Decodes image files: PNG, JPEG, TIFF, BMP and GIF pictures, and NIfTI volumes. A new file format is added here.

Imports neither torch nor MONAI, because `raysim data describe` decodes files without them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
IMAGE_SUFFIX = re.compile(r"\.(nii\.gz|nii|png|jpe?g|tiff?|bmp|gif)$", re.IGNORECASE)
MAX_VOXELS = 2**30  # of a volume, 4 GB as float32: a larger array would run out of memory and kill the process
NIFTI2_HEADER_BYTES = 540
PLAIN_MODES = {  # Pillow's modes with a palette, alpha or another colour space, and the mode after conversion
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LA": "L",
    "1": "L",
}


@dataclass(frozen=True)
class Image:
    """An image and its position.

    array   (C, *space): a picture is (C, height, width), a volume (C, right, anterior, superior)
    affine  (D + 1, D + 1), voxel index to mm; a picture has 1 mm per pixel
    """

    array: Array
    affine: Array

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
    """Whether the file at this path or URL is a NIfTI volume, by its name."""
    return path.partition("::")[0].lower().endswith((".nii", ".nii.gz"))


def decode_image(file: str | bytes, volume: bool, mask: bool = False) -> Image:
    """The image with its stored values; `file` is a local path or the uncompressed content of the file.

    Raises ConfigError, without the file's name, for an image that cannot be used, and the errors of nibabel and Pillow
    for a damaged file.
    """
    if volume:
        return _decode_nifti(file)
    return Image(_decode_picture(file if isinstance(file, str) else BytesIO(file), mask), np.eye(3))


def _decode_picture(file: str | BytesIO, mask: bool) -> Array:
    """(1 or 3, height, width) without alpha, in the file's data type; a mask is (1, height, width)."""
    from PIL import Image as PillowImage, UnidentifiedImageError  # not at the top: tables are read without it

    try:
        with PillowImage.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise ConfigError("has several pages; store each page as a separate picture")
            # A mask with a palette stores classes as palette indices; the colours are for display only.
            convert = not mask and picture.mode in PLAIN_MODES
            plain = picture.convert(PLAIN_MODES[picture.mode]) if convert else picture
            array = np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)
    except UnidentifiedImageError:  # its message names the stream, not the file
        raise ConfigError("cannot be read: expected a picture in a supported format (PNG, JPEG, TIFF, BMP)") from None
    if not mask:
        return array
    array = array[: {2: 1, 4: 3}.get(len(array), len(array))]  # without its alpha channel
    if (array != array[0]).any():
        raise ConfigError("a mask must be grey, one value per class; this one is coloured")
    return array[:1]


def _decode_nifti(file: str | bytes) -> Image:
    """The volume with its axes reordered and flipped to right, anterior, superior."""
    import nibabel  # not at the top: tables are read without it

    volume: Any = nibabel.load(file) if isinstance(file, str) else _nifti_from_bytes(file)
    _check_size(volume.shape)
    array = np.asanyarray(volume.dataobj)
    extra_axes = tuple(axis for axis in range(3, array.ndim) if array.shape[axis] == 1)
    array = array.squeeze(extra_axes)
    if array.ndim not in (3, 4):
        raise ConfigError(f"a volume must have three spatial axes, this one has {array.ndim - (array.ndim > 3)}")
    to_ras = nibabel.io_orientation(volume.affine)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(to_ras, array.shape[:3])
    array = nibabel.apply_orientation(array, to_ras)
    return Image(np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None], affine)


def _nifti_from_bytes(content: bytes) -> Any:
    import nibabel

    sizes = (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    image_class = nibabel.Nifti2Image if NIFTI2_HEADER_BYTES in sizes else nibabel.Nifti1Image
    return image_class.from_bytes(content)


def _check_size(shape: Sequence[int]) -> None:
    """Raises ConfigError for a volume whose header declares more voxels than fit in memory."""
    if (voxels := math.prod(shape)) > MAX_VOXELS:
        raise ConfigError(f"its header declares {voxels:,} voxels; at most {MAX_VOXELS:,} are supported")
