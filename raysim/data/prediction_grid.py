"""Resamples predictions from the prepared examples of an image back to the grid of its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysim.data.case_preparation import CasePreparation
from raysim.data.image_formats import Image
from raysim.data.nonzero_box import crop
from raysim.data.resample import resample_to, resampled_grid
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
Space = tuple[slice, ...]
CROPPED_LOGIT = 50.0  # of the background where cropping removed a part of the image; the other classes have -50
ROWS = 16  # of the image that are interpolated together


def restore_logits(logits: Array, image: Image, preparation: CasePreparation) -> Array:
    """The logits (K, *space) on the grid of `image`, from those of its prepared examples (n, K, *space).

    Inverts the preparation in reverse order, with linear interpolation. A part of the image that was cropped is
    background. `image` is the image as read, with the orientation of the reader.
    """
    if preparation.crop_nonzero:
        box = preparation.kept_box(image)
        restored = _background(logits.shape[1], image.space)
        restored[(slice(None), *box)] = restore_logits(
            logits, crop(image, box), replace(preparation, crop_nonzero=False)
        )
        return restored
    resampled = image if preparation.spacing is None else resampled_grid(image, preparation.spacing)
    space = resampled.space[:2] if preparation.slices else resampled.space
    fitted = _unfit(logits, space, preparation)
    on_grid = np.moveaxis(fitted, 0, -1) if preparation.slices else fitted[0]
    if preparation.spacing is None:
        return np.ascontiguousarray(on_grid)
    return resample_to(replace(resampled, array=on_grid), image).array


def restore_slabs(
    slabs: Iterable[Array], image: Image, box: Space, preparation: CasePreparation
) -> Iterator[tuple[Space, Array]]:
    """Yields `restore_logits` of an image that keeps its size in parts, each with its position; needs less memory.

    `slabs` are the logits (K, n, *rest) of the prepared image in parts along its first axis, or (K, *slice, 1) of its
    slices. A slab and a part are only valid until the next one. `box` is the part of the image that was kept.
    """
    axis = len(image.space) - 1 if preparation.slices else 0
    parts = (
        slabs if preparation.spacing is None else _resample_slabs(slabs, crop(image, box), preparation.spacing, axis)
    )
    start = box[axis].start or 0
    for part in parts:
        stop = start + part.shape[1 + axis]
        yield (*box[:axis], slice(start, stop), *box[axis + 1 :]), part
        start = stop


def _resample_slabs(slabs: Iterable[Array], grid: Image, spacing: tuple[float, ...], axis: int) -> Iterator[Array]:
    """The logits of `slabs` along `axis`, of a volume with this spacing, on `grid` in parts of ROWS rows."""
    source, dims = resampled_grid(grid, spacing), len(grid.space)
    pieces = (
        slab[(slice(None), *_rows(dims, axis, start, start + ROWS))]
        for slab in slabs
        for start in range(0, slab.shape[1 + axis], ROWS)
    )
    held, first = np.array(next(pieces)), 0  # consecutive rows of the source, and the number of the first
    for start in range(0, grid.space[axis], ROWS):
        target = crop(grid, _rows(dims, axis, start, start + ROWS))
        low, high = _rows_between(source, target, axis)
        while first + held.shape[1 + axis] < high:
            held = np.concatenate([held, next(pieces)], 1 + axis)
        held, first = held[(slice(None), *_rows(dims, axis, low - first, None))], low
        part = crop(source, _rows(dims, axis, low, low + held.shape[1 + axis]))
        yield resample_to(replace(part, array=held), target).array


def _rows(dims: int, axis: int, start: int, stop: int | None) -> Space:
    return tuple(slice(start, stop) if each == axis else slice(None) for each in range(dims))


def _rows_between(source: Image, target: Image, axis: int) -> tuple[int, int]:
    """The rows of `source` along `axis` with the voxels around `target`: the first, and the one after the last."""
    corners = np.stack([*np.ndindex(*[2] * len(target.space))]) * (np.array(target.space) - 1)
    indices = np.linalg.solve(source.affine, target.affine @ np.hstack([corners, np.ones((len(corners), 1))]).T)[axis]
    last = source.space[axis] - 1
    low, high = np.clip([np.floor(indices.min()) - 1, np.ceil(indices.max()) + 1], 0, last).astype(int)
    return int(low), int(high) + 1


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
