"""Images on another grid over the same field of view, with the same bits on any number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def resize_image(images: Array, space: Sequence[int]) -> Array:
    """The images (N, C, *space) on a grid of `space`: linear between voxels, averaged where it is coarser.

    In numpy, for the bits of torch's kernels, and so of MONAI's Resize, depend on the number of threads, and
    torch averages pictures only, not volumes.
    """
    for axis, length in enumerate(space, start=2):
        if images.shape[axis] == length:
            continue
        places, weights = _taps(images.shape[axis], length)
        along = (-1, *[1] * (images.ndim - axis - 1))
        total = np.zeros((*images.shape[:axis], length, *images.shape[axis + 1 :]), np.float32)
        for place, weight in zip(places.T, weights.T, strict=True):
            total += weight.reshape(along) * images.take(place, axis)
        images = total
    return images


def _taps(old: int, new: int) -> tuple[Array, Array]:
    """Which voxels make up each new one, and their weights: (new, K) both, a triangle as wide as the coarser grid."""
    reach = max(1.0, old / new)
    centre = ((np.arange(new) + 0.5) * old / new - 0.5)[:, None]
    places = np.ceil(centre - reach).astype(int) + np.arange(int(2 * reach) + 1)
    weights = np.maximum(0, 1 - np.abs(places - centre) / reach) * (places >= 0) * (places < old)
    weights /= weights.sum(1, keepdims=True)
    return places.clip(0, old - 1), weights.astype(np.float32)
