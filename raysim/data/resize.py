"""Resamples images to another grid over the same field of view; the result is independent of the thread count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def resize_image(images: Array, space: Sequence[int]) -> Array:
    """The images (N, C, *space) on a grid of `space`: linear interpolation, with averaging along axes that get coarser.

    In numpy, because the rounding of torch's kernels, and so of MONAI's Resize, depends on the number of threads, and
    torch averages pictures only, not volumes.
    """
    for axis, length in enumerate(space, start=2):
        if images.shape[axis] == length:
            continue
        indices, weights = _interpolation_weights(images.shape[axis], length)
        along = (-1, *[1] * (images.ndim - axis - 1))
        total = np.zeros((*images.shape[:axis], length, *images.shape[axis + 1 :]), np.float32)
        for index, weight in zip(indices.T, weights.T, strict=True):
            total += weight.reshape(along) * images.take(index, axis)
        images = total
    return images


def _interpolation_weights(old: int, new: int) -> tuple[Array, Array]:
    """The K voxels that contribute to each new one, and their weights, both (new, K): a triangular kernel.

    The kernel is as wide as the coarser of the two grids.
    """
    reach = max(1.0, old / new)
    centre = ((np.arange(new) + 0.5) * old / new - 0.5)[:, None]
    indices = np.ceil(centre - reach).astype(int) + np.arange(int(2 * reach) + 1)
    weights = np.maximum(0, 1 - np.abs(indices - centre) / reach) * (indices >= 0) * (indices < old)
    weights /= weights.sum(1, keepdims=True)
    return indices.clip(0, old - 1), weights.astype(np.float32)
