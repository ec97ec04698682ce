"""What one case's files say of themselves: shape, spacing, intensities, and the values of its label."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

import fsspec
import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_pixels import MOST, check_volume, pixels as picture_pixels

Array = np.ndarray[Any, np.dtype[Any]]
FEW = 32  # more values than that are no classes
LARGEST = 8 * MOST  # bytes of a file: its voxels as float64
SAMPLE = 1_000_000  # voxels that percentiles are taken of


@dataclass(frozen=True)
class FileFacts:
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
class Inspection:
    """What reading a case gave; `counts` are the pixels of each label value."""

    facts: FileFacts | None = None
    counts: dict[float, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Opened(NamedTuple):
    """What a file holds: pixels (C, *space), and where they lie, voxel to mm, if a header says so."""

    pixels: Array
    affine: Array | None = None


def inspect_case(image: str | None, label: str | None) -> Inspection:
    """The facts of an image and of its mask, if any. A file that cannot be read is a problem, not an error."""
    problems: list[str] = []
    scan = _opened(image, "image", problems)
    mask = _opened(label, "label", problems)
    if scan and mask:
        problems += [f"{fault}: {image}, {label}" for fault in _apart(scan, mask)]
    counts = _counts(mask.pixels, f"label {label}", problems) if mask else {}
    return Inspection(_facts(scan) if scan else None, counts, tuple(problems))


def _apart(scan: Opened, mask: Opened) -> list[str]:
    """How a label does not lie on its image."""
    if scan.pixels.shape[1:] != mask.pixels.shape[1:]:
        shapes = " and ".join(" x ".join(map(str, array.shape[1:])) for array in (scan.pixels, mask.pixels))
        return [f"image and label differ in shape, {shapes}"]
    if scan.affine is None or mask.affine is None or np.allclose(scan.affine, mask.affine, atol=0.1):
        return []
    return ["image and label lie in different places"]


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


def _opened(path: str | None, role: str, problems: list[str]) -> Opened | None:
    if path is None:
        return None
    try:
        opened = _read(path, role)
    except FileNotFoundError:
        problems.append(f"{role} {path} does not exist")
        return None
    except ConfigError as reason:
        problems.append(f"{role} {path} {reason}")
        return None
    except Exception as reason:  # noqa: BLE001 - a damaged file may raise anything, and the others are still read
        problems.append(f"{role} {path} cannot be read: {type(reason).__name__}: {reason}")
        return None
    if not np.isfinite(opened.pixels).all():
        problems.append(f"{role} {path} holds NaN or infinity")
    return opened


def _read(path: str, role: str) -> Opened:
    with fsspec.open(path, "rb", compression="infer") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"unfolds to more than {LARGEST:,} bytes")
    if path.partition("::")[0].lower().endswith((".nii", ".nii.gz")):
        return _nifti(content)
    return Opened(picture_pixels(BytesIO(content), mask=role == "label"))


def _nifti(content: bytes) -> Opened:
    """The volume with its axes to the right, to the front and up, as it is trained on."""
    import nibabel  # here, as a table is read without it

    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))  # its header's size
    volume = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
    check_volume(volume.shape)
    if volume.ndim < 3:
        raise ConfigError(f"is no volume: of its three axes of space it has {volume.ndim}")
    volume = nibabel.as_closest_canonical(volume)  # type: ignore[no-untyped-call]  # nibabel has types in part
    voxels = np.asarray(volume.dataobj)
    return Opened(np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), -1, 0), volume.affine)


def _facts(opened: Opened) -> FileFacts:
    pixels, shape = opened.pixels, opened.pixels.shape[1:]
    spacing = None if opened.affine is None else tuple(np.linalg.norm(opened.affine[:3, :3], axis=0).tolist())
    finite = pixels[np.isfinite(pixels)]
    if not len(finite):
        return FileFacts(shape, spacing, len(pixels), *[np.nan] * 5)
    p1, p99 = np.percentile(finite[:: len(finite) // SAMPLE + 1], (1, 99))
    mean, ends = finite.mean(dtype=np.float64), (finite.min(), finite.max())
    return FileFacts(shape, spacing, len(pixels), *map(float, (ends[0], p1, mean, p99, ends[1])))
