"""Resamples predictions from the prepared examples of an image back to the grid of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysim.data.case_preparation import CasePreparation
from raysim.data.image_formats import Image
from raysim.data.nonzero_box import crop, nonzero_box
from raysim.data.resample import resample_to, resample_volume
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
CROPPED_LOGIT = 50.0  # of the background where cropping removed a part of the image; the other classes have -50


def restore_logits(logits: Array, image: Image, preparation: CasePreparation) -> Array:
    """The logits (K, *space) on the grid of `image`, from those of its prepared examples (n, K, *space).

    Inverts the preparation in reverse order, with linear interpolation. A part of the image that was cropped is
    background. `image` is the image as read, with the orientation of the reader.
    """
    if preparation.crop_nonzero:
        box = nonzero_box(image.array)
        restored = _background(logits.shape[1], image.space)
        restored[(slice(None), *box)] = restore_logits(
            logits, crop(image, box), replace(preparation, crop_nonzero=False)
        )
        return restored
    empty = replace(image, array=np.zeros((1, *image.space), np.float32))
    resampled = empty if preparation.spacing is None else resample_volume(empty, preparation.spacing, "nearest")
    space = resampled.space[:2] if preparation.slices else resampled.space
    fitted = _unfit(logits, space, preparation)
    on_grid = np.moveaxis(fitted, 0, -1) if preparation.slices else fitted[0]
    if preparation.spacing is None:
        return np.ascontiguousarray(on_grid)
    return resample_to(replace(resampled, array=on_grid), image).array


def _unfit(logits: Array, space: Sequence[int], preparation: CasePreparation) -> Array:
    """The inverse of the preparation's `fit`: logits (n, K, *size) as (n, K, *space)."""
    if tuple(logits.shape[2:]) == tuple(space):
        return logits
    if preparation.fit == "resize":
        return resize_image(logits, space)
    restored = np.repeat(_background(logits.shape[1], space)[None], len(logits), axis=0)
    pairs = [_overlap(old, new) for old, new in zip(space, logits.shape[2:], strict=True)]
    inside, source = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    restored[(slice(None), slice(None), *inside)] = logits[(slice(None), slice(None), *source)]
    return restored


def _background(classes: int, space: Sequence[int]) -> Array:
    """Logits (K, *space) of the background."""
    logits = np.full((classes, *space), -CROPPED_LOGIT, np.float32)
    logits[0] = CROPPED_LOGIT
    return logits


def _overlap(old: int, new: int) -> tuple[slice, slice]:
    """The overlap, in both axes, of an axis of `old` voxels with the axis padded or cropped to `new` at its centre."""
    if new >= old:  # as in MONAI's SpatialPad
        return slice(0, old), slice((new - old) // 2, (new - old) // 2 + old)
    start = old // 2 - new // 2  # as in MONAI's CenterSpatialCrop
    return slice(start, start + new), slice(0, new)
