"""The part of an image that has values other than 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raysim.data.image_formats import Image

Array = np.ndarray[Any, np.dtype[Any]]


def nonzero_box(array: Array) -> tuple[slice, ...]:
    """The smallest box of (C, *space) with all values other than 0; all of an image that has none."""
    nonzero = (array != 0).any(0)
    axes = range(nonzero.ndim)
    found = [np.flatnonzero(nonzero.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(each[0]), int(each[-1]) + 1) if len(each) else slice(None) for each in found)


def crop(image: Image, box: tuple[slice, ...]) -> Image:
    """The part of an image in a box."""
    affine = image.affine.copy()
    affine[:-1, -1] += affine[:-1, :-1] @ np.array([each.start or 0 for each in box], np.float64)
    return replace(image, array=image.array[(slice(None), *box)], affine=affine)
