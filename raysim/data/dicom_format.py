"""Decodes DICOM: a folder with the slices of one series, a file with several frames, a picture, a segmentation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data import dicom_codecs
from raysim.data.dicom_headers import (
    Slice,
    check_one_series,
    check_pixels,
    damage_reported,
    dicom_files,
    frame_count,
    is_segmentation,
    load_pydicom,
    read_header,
    slices,
)
from raysim.data.image_formats import Array, Dtype, Image, decoded_type
from raysim.data.memory_limit import check_memory
from raysim.data.voxel_stream import LPS_TO_RAS, check_affine, shear_notes, turn_to_ras

SAME_POSITION = 0.01  # mm; slices that are closer are at the same position
MAX_DEVIATION = 0.1  # of a distance between slices from the median distance, as a fraction of it
SAME_DIRECTION = 1e-3  # largest difference of the components of equal directions
FRAME_BYTES = 40  # memory per pixel while a frame is decoded
INVERTED = "its value 0 is white (MONOCHROME1), so its values are inverted, as in viewers"


def spatial_axes(file: str) -> int:
    """3 for a file with several frames, or a segmentation; else 2."""
    header = read_header(file)
    return 3 if frame_count(header) > 1 or is_segmentation(header) else 2


def decode_dicom_picture(file: str, stored: int, mask: bool) -> Image:
    """(1 or 3, height, width) of a file with one frame. Raises ConfigError for a file that cannot be used."""
    header = read_header(file)
    check_pixels(header)
    check_memory(_pixels(header) * int(header.get("SamplesPerPixel", 1)) * FRAME_BYTES, stored)
    with damage_reported():
        (frame,) = frames(file, header, [0])
        slope, inter = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        inverted = header.PhotometricInterpretation == "MONOCHROME1"
        if inverted and mask:
            raise ConfigError("is a mask in which 0 is white (MONOCHROME1); store it with MONOCHROME2")
        if inverted:
            white = -1 if header.PixelRepresentation else 2 ** int(header.BitsStored) - 1
            frame = white - frame.astype(np.float32)
        array = frame if (slope, inter) == (1, 0) else frame * slope + inter
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return Image(array, np.eye(3), (INVERTED,) if inverted else ())


def decode_dicom_volume(path: str, stored: int, mask: bool) -> Image:
    """The volume of a folder with one series, or of a file with several frames, in right, anterior, superior.

    Raises ConfigError for several series, for slices that are absent, at the same position or not parallel, and for a
    volume that takes more memory than files of `stored` bytes may take.
    """
    files = dicom_files(path) if os.path.isdir(path) else [path]
    if not files:
        raise ConfigError("has no DICOM file; expected a folder with the slices of one series")
    headers = {file: read_header(file) for file in files}
    check_one_series(headers)
    _check_sizes(headers)
    first = headers[files[0]]
    if is_segmentation(first):
        from raysim.data.dicom_segmentation import decode_segmentation  # not at the top: it imports this module

        return decode_segmentation(path, first, stored)
    stack = ordered([part for file in files for part in slices(file, headers[file])])
    if len(stack) < 2:
        raise ConfigError("has one slice; a volume needs several. To use it as a picture, name the .dcm file")
    step = slice_step(stack)
    dtype = _result_type(first, stack, mask)
    shape = (int(first.Columns), int(first.Rows), len(stack))
    per_voxel = dtype.itemsize * (2 if mask else 1)
    check_memory(np.prod(shape, dtype=float) * per_voxel + _pixels(first) * FRAME_BYTES, stored)
    array = np.empty(shape, dtype, order="F")
    with damage_reported():
        for number, part, frame in _decoded(stack, headers):
            values = frame if (part.slope, part.inter) == (1, 0) else frame * part.slope + part.inter
            array[..., number] = values.T
    affine = stack_affine(stack[0], step)
    turned, in_ras = turn_to_ras(array[None], affine)
    return Image(turned, in_ras, shear_notes(affine))


def ordered(stack: Sequence[Slice]) -> list[Slice]:
    """The slices in the order of their positions. Raises ConfigError for slices that are not parallel."""
    first = stack[0]
    for part in stack:
        if (
            np.abs(part.orientation - first.orientation).max() > SAME_DIRECTION
            or np.abs(np.subtract(part.spacing, first.spacing)).max() > SAME_DIRECTION
        ):
            raise ConfigError(
                f"its slices differ in orientation or spacing: {_name(part)} and {_name(first)}; keep parallel slices "
                "with the same spacing"
            )
    normal = np.cross(*first.orientation)
    return sorted(stack, key=lambda part: float(part.position @ normal))


def slice_step(stack: Sequence[Slice]) -> Array:
    """The vector from a slice to the next, in mm. Raises ConfigError for unequal distances and for equal positions."""
    normal = np.cross(*stack[0].orientation)
    distances = np.diff([float(part.position @ normal) for part in stack])
    closest = int(distances.argmin())
    if distances[closest] < SAME_POSITION:
        raise ConfigError(
            f"has several slices at one position, such as {_name(stack[closest])} and {_name(stack[closest + 1])}; "
            "keep one image (phase, echo, or time) in a folder"
        )
    usual = float(np.median(distances))
    if np.abs(distances - usual).max() > MAX_DEVIATION * usual:
        odd = int(np.abs(distances - usual).argmax())
        raise ConfigError(
            f"its slices are not at equal distances: {distances[odd]:.4g} mm between {_name(stack[odd])} and "
            f"{_name(stack[odd + 1])}, but {usual:.4g} mm between most; add the missing slices"
        )
    step: Array = (stack[-1].position - stack[0].position) / (len(stack) - 1)
    return step


def stack_affine(first: Slice, step: Array) -> Array:
    """The affine from column, row and slice to RAS in mm."""
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    in_ras: Array = LPS_TO_RAS @ affine
    check_affine(in_ras)
    return in_ras


def _check_sizes(headers: Mapping[str, Any]) -> None:
    """Raises ConfigError for files without pixels, of several sizes, or with colours."""
    for header in headers.values():
        check_pixels(header)
    with damage_reported():
        sizes = {(int(header.Rows), int(header.Columns)) for header in headers.values()}
        if len(sizes) > 1:
            raise ConfigError(f"its slices have several sizes, {sorted(sizes)}; keep slices of one size")
        if any(int(header.get("SamplesPerPixel", 1)) != 1 for header in headers.values()):
            raise ConfigError("its slices have colours; a volume needs one value per voxel: store them as grey images")


def _decoded(stack: Sequence[Slice], headers: Mapping[str, Any]) -> Iterator[tuple[int, Slice, Array]]:
    """Yields the number, the slice and the values of each slice; frames of a file are read in their order."""
    by_file: dict[str, list[tuple[int, Slice]]] = {}
    for number, part in enumerate(stack):
        by_file.setdefault(part.file, []).append((number, part))
    for file, parts in by_file.items():
        parts.sort(key=lambda pair: pair[1].frame)
        for (number, part), frame in zip(
            parts, frames(file, headers[file], [part.frame for _, part in parts]), strict=True
        ):
            yield number, part, frame


def frames(file: str, header: Any, numbers: Sequence[int]) -> Iterator[Array]:
    """The stored values of frames (rows, columns[, 3]); colours are RGB."""
    pydicom = load_pydicom()
    syntax = pydicom.filereader.read_file_meta_info(file).TransferSyntaxUID
    if header.BitsAllocated == 1 and not syntax.is_encapsulated:
        yield from _bit_frames(file, header, numbers)
        return
    plugin = dicom_codecs.PLUGIN if syntax in dicom_codecs.DECODER_DEPENDENCIES else ""
    yield from pydicom.pixels.iter_pixels(file, indices=numbers, decoding_plugin=plugin)


def _bit_frames(file: str, header: Any, numbers: Sequence[int]) -> Iterator[Array]:
    """Frames with a bit per pixel. pydicom cannot iterate over those that do not end at the end of a byte."""
    content = load_pydicom().dcmread(file, specific_tags=["PixelData"]).PixelData
    size = int(header.Rows) * int(header.Columns)
    for number in numbers:
        first, last = number * size, (number + 1) * size
        part = np.frombuffer(content[first // 8 : -(-last // 8)], np.uint8)
        yield np.unpackbits(part, bitorder="little")[first % 8 :][:size].reshape(header.Rows, header.Columns)


def _result_type(header: Any, stack: Sequence[Slice], mask: bool) -> Dtype:
    scaled = any((part.slope, part.inter) != (1, 0) for part in stack)
    bits = int(header.get("BitsAllocated", 16))
    stored = np.dtype(f"{'i' if header.get('PixelRepresentation') else 'u'}{max(1, bits // 8)}")
    return decoded_type(np.dtype(np.float64) if scaled else stored, mask)


def _pixels(header: Any) -> float:
    return float(header.get("Rows") or 0) * float(header.get("Columns") or 0)


def _name(part: Slice) -> str:
    name = os.path.basename(part.file)
    return f"{name} frame {part.frame + 1}" if part.frame else name
