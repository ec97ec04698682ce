"""Decodes DICOM segmentations as masks whose values are the numbers of the segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.dicom_format import FRAME_BYTES, frames, ordered, stack_affine
from raysim.data.dicom_headers import Slice, damage_reported, slices
from raysim.data.image_formats import Array, Image
from raysim.data.memory_limit import check_memory
from raysim.data.voxel_stream import shear_notes, turn_to_ras

LABELMAP = "LABELMAP"
OFF_GRID = 0.1  # voxels from a plane of the grid


def decode_segmentation(file: str, header: Any, stored: int) -> Image:
    """The mask (1, right, anterior, superior), from the first to the last slice of the file.

    A file often has only the slices that show a segment, so its grid is a part of that of the image. Slices between
    them that the file lacks are background.
    """
    kind = str(header.get("SegmentationType", ""))
    if kind not in ("BINARY", LABELMAP):
        raise ConfigError("is a DICOM segmentation with fractions; expected one of the type BINARY or LABELMAP")
    stack = ordered(slices(file, header))
    indices, step = _slice_indices(stack, header)
    shape = (int(header.Columns), int(header.Rows), int(indices[-1]) + 1)
    dtype = np.dtype(np.uint8 if kind != LABELMAP and max(part.segment for part in stack) < 256 else np.uint16)
    per_voxel = 2 * dtype.itemsize  # sorting copies a mask
    check_memory(np.prod(shape, dtype=float) * per_voxel + shape[0] * shape[1] * FRAME_BYTES, stored)
    array = np.zeros(shape, dtype, order="F")
    with damage_reported():
        _fill(array, file, header, stack, indices)
    affine = stack_affine(stack[0], step)
    turned, in_ras = turn_to_ras(array[None], affine)
    return Image(turned, in_ras, shear_notes(affine))


def _fill(array: Array, file: str, header: Any, stack: Sequence[Slice], indices: Array) -> None:
    pairs = sorted(zip(stack, indices.tolist(), strict=True), key=lambda pair: pair[0].frame)
    for (part, index), frame in zip(pairs, frames(file, header, [part.frame for part, _ in pairs]), strict=True):
        plane = array[..., index]
        if header.SegmentationType == LABELMAP:
            plane[...] = frame.T
            continue
        inside = frame.T != 0
        if (plane[inside] != 0).any():
            raise ConfigError("has segments that overlap; a mask has one class for each voxel: store one segment")
        plane[inside] = part.segment


def _slice_indices(stack: Sequence[Slice], header: Any) -> tuple[Array, Array]:
    """The index of the plane of each slice, and the vector from a plane to the next in mm."""
    normal = np.cross(*stack[0].orientation)
    distances = np.array([float((part.position - stack[0].position) @ normal) for part in stack])
    apart = np.diff(np.unique(np.round(distances, 3)))
    for spacing in (*_measures(header), *apart[apart.argsort()[:1]], *_measures(header, "SliceThickness")):
        indices = np.rint(distances / spacing).astype(int)
        if np.abs(distances / spacing - indices).max() < OFF_GRID:
            return indices, normal * spacing
    raise ConfigError("the distances of its frames have no common step; store it on the grid of its image")


def _measures(header: Any, name: str = "SpacingBetweenSlices") -> list[float]:
    """A distance in mm that all frames share; empty without it."""
    with damage_reported():
        shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
        value = (shared.get("PixelMeasuresSequence") or [{}])[0].get(name)
    return [float(value)] if value else []


def paste(mask: Image, scan: Image) -> Image:
    """The mask on the grid of `scan`, if the planes of the mask are planes of `scan`; else unchanged."""
    to_scan = np.linalg.solve(scan.affine, mask.affine)
    start, steps = np.rint(to_scan[:3, 3]).astype(int), np.rint(np.diag(to_scan)[:3]).astype(int)
    end = start + steps * (np.array(mask.space) - 1) + 1
    rounded = np.diag([*steps, 1.0])
    rounded[:3, 3] = start
    corner = np.array([*mask.space, 1.0])
    off_grid = np.abs((to_scan - rounded) @ corner).max() > OFF_GRID or np.abs(to_scan - rounded).max() > OFF_GRID
    if off_grid or (steps < 1).any() or (start < 0).any() or (end > scan.space).any():
        return mask
    array = np.zeros((1, *scan.space), mask.array.dtype)
    parts = (slice(int(low), int(high), int(step)) for low, high, step in zip(start, end, steps, strict=True))
    array[(slice(None), *parts)] = mask.array
    return Image(array, scan.affine, mask.notes)
