"""The pixels of a picture file, as training and descriptions both take them; torch is not needed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
MOST = 2**30  # voxels of a volume, 4 GB: what promises more would end in a killed process
COLOUR = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "1": "L"}


def check_volume(shape: Sequence[int]) -> None:
    """Raises ConfigError for a volume whose header promises more voxels than memory holds."""
    if (voxels := math.prod(shape)) > MOST:
        raise ConfigError(f"its header promises {voxels:,} voxels; at most {MOST:,} are read")


def pixels(file: str | BytesIO, mask: bool) -> Array:
    """(1 or 3, height, width) in the file's own numbers, without alpha; of a mask, (1, height, width), as stored.

    Raises ConfigError, which leaves it to the caller to name the file.
    """
    from PIL import Image, UnidentifiedImageError  # here, as a table is read without it

    try:
        with Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise ConfigError("has several pages; store each as a picture of its own")
            # The numbers of a palette are a mask's classes, and its colours are for the eye only.
            plain = picture if mask or picture.mode not in COLOUR else picture.convert(COLOUR[picture.mode])
            array = np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)
    except UnidentifiedImageError:  # its message is about the stream, not about the file
        raise ConfigError("cannot be read: it is no picture that raysim knows (PNG, JPEG, TIFF, BMP)") from None
    if not mask:
        return array
    array = array[: {2: 1, 4: 3}.get(len(array), len(array))]  # without its alpha channel
    if (array != array[0]).any():
        raise ConfigError("a mask must be grey, one value per class; this one is coloured")
    return array[:1]
