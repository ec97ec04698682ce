"""What one case's files say of themselves: shape, spacing, intensities, and the values of its label."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import fsspec
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
FEW = 32  # more values than that are no classes
SAMPLE = 1_000_000  # voxels that percentiles are taken of


@dataclass(frozen=True)
class Facts:
    """One image: voxels along each axis, mm between them (none without a header that says), intensities."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    channels: int
    low: float
    p1: float
    mean: float
    p99: float
    high: float


@dataclass(frozen=True)
class Look:
    """What reading a case gave; `counts` are the pixels of each label value."""

    facts: Facts | None = None
    counts: dict[float, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def look(image: str | None, label: str | None) -> Look:
    """The facts of an image and of its mask, if any. A file that cannot be read is a problem, not an error."""
    problems: list[str] = []
    pixels = _opened(image, "image", problems)
    mask = _opened(label, "label", problems)
    if mask and pixels and mask[0].shape[1:] != pixels[0].shape[1:]:
        shapes = " and ".join(" x ".join(map(str, array.shape[1:])) for array in (pixels[0], mask[0]))
        problems.append(f"image and label differ in shape, {shapes}: {image}, {label}")
    counts = _counts(mask[0], f"label {label}", problems) if mask else {}
    return Look(_facts(*pixels) if pixels else None, counts, tuple(problems))


def _counts(mask: Array, name: str, problems: list[str]) -> dict[float, int]:
    """The pixels of each value of a mask; none where it is no mask."""
    if len(mask) > 1:
        problems.append(f"{name} has {len(mask)} channels; a mask has one")
        return {}
    values, counts = np.unique(mask, return_counts=True)
    if len(values) > FEW:
        problems.append(f"{name} has {len(values)} different values, as JPEG leaves them; a mask has few")
        return {}
    return dict(zip(values.astype(float).tolist(), counts.tolist(), strict=True))


def _opened(path: str | None, role: str, problems: list[str]) -> tuple[Array, tuple[float, ...] | None] | None:
    if path is None:
        return None
    try:
        pixels, spacing = _read(path, role)
    except FileNotFoundError:
        problems.append(f"{role} {path} does not exist")
        return None
    except Exception as reason:  # noqa: BLE001 - a damaged file may raise anything, and the others are still read
        problems.append(f"{role} {path} cannot be read: {type(reason).__name__}: {reason}")
        return None
    if not np.isfinite(pixels).all():
        problems.append(f"{role} {path} holds NaN or infinity")
    return pixels, spacing


def _read(path: str, role: str) -> tuple[Array, tuple[float, ...] | None]:
    """The pixels (C, *space) of a file, and mm between them."""
    with fsspec.open(path, "rb", compression="infer") as file:
        content = file.read()
    if path.partition("::")[0].endswith((".nii", ".nii.gz")):
        return _nifti(content)
    from PIL import Image  # here, as nibabel below: a table is read without them

    with Image.open(BytesIO(content)) as picture:
        # The palette of a mask holds colours for people; its indices are the classes.
        pixels = np.asarray(picture.convert("RGB") if picture.mode == "P" and role == "image" else picture)
    return (np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]), None


def _nifti(content: bytes) -> tuple[Array, tuple[float, ...]]:
    import nibabel

    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))  # its header's size
    volume = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
    pixels = np.asarray(volume.dataobj)
    space = pixels.shape[:3]
    spacing = tuple(float(step) for step in volume.header["pixdim"][1 : 1 + len(space)])
    return np.moveaxis(pixels.reshape(*space, -1), -1, 0), spacing


def _facts(pixels: Array, spacing: tuple[float, ...] | None) -> Facts:
    finite = pixels[np.isfinite(pixels)]
    if not len(finite):
        return Facts(pixels.shape[1:], spacing, len(pixels), *[np.nan] * 5)
    p1, p99 = np.percentile(finite[:: len(finite) // SAMPLE + 1], (1, 99))
    mean, ends = finite.mean(dtype=np.float64), (finite.min(), finite.max())
    return Facts(pixels.shape[1:], spacing, len(pixels), *map(float, (ends[0], p1, mean, p99, ends[1])))
