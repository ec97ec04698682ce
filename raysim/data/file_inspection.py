"""Inspects the files of one case for `raysim data describe`: shape, spacing, intensities and label values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Image
from raysim.data.image_reader import is_finite, load_image, on_grid_of, position_problem
from raysim.data.mask_colours import palette_entries

if TYPE_CHECKING:  # it imports torch, which a description without keys does not need
    from raysim.data.case_preparation import CasePreparation

Array = np.ndarray[Any, np.dtype[Any]]
MAX_LABEL_VALUES = 32  # the values of a mask or a column with more distinct values are not classes
PERCENTILE_SAMPLE = 1_000_000  # voxels from which percentiles are computed


@dataclass(frozen=True)
class ImageStatistics:
    """Voxels along each axis, mm between voxels, and intensities; `spacing` is None for pictures, which have none.

    p1 and p99 are the 1st and 99th percentile; intensities are NaN for an image without finite values.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    channels: int
    low: float
    p1: float
    mean: float
    p99: float
    high: float


@dataclass(frozen=True)
class CaseInspection:
    """The result of reading one case.

    `counts` has the number of pixels of each label value or class, `entries` the `palette_entries` of a picture's mask,
    `notes` the file and a phrase for each decision of the reader, and `foreground` the value of the class whose value
    is None, 0 without one.
    """

    statistics: ImageStatistics | None = None
    counts: dict[float | str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    entries: Array | None = None
    notes: tuple[tuple[str, str], ...] = ()
    foreground: int = 0


def inspect_case(image: str | None, label: str | None, preparation: CasePreparation | None = None) -> CaseInspection:
    """The statistics of an image and of its mask. A file that cannot be read is added to `problems`.

    With the `preparation` of a run, files are read and checked as in that run, and masks have its classes.
    """
    if preparation is not None and image is not None:
        return _inspect_prepared(image, label, preparation)
    problems: list[str] = []
    scan = _read_or_report(image, "image", problems)
    mask = _read_or_report(label, "label", problems)
    if scan and mask and label:
        mask = on_grid_of(scan, mask, label)
        problems += [f"{problem}: {image}, {label}" for problem in _geometry_problems(scan, mask)]
    counts = _count_values(mask.array, f"label {label}", problems) if mask else {}
    statistics = _compute_statistics(scan) if scan else None
    entries = palette_entries(mask.array, mask.palette) if counts and mask and len(mask.space) == 2 else None
    return CaseInspection(statistics, counts, tuple(problems), entries, _notes((image, scan), (label, mask)))


def _inspect_prepared(image: str, label: str | None, preparation: CasePreparation) -> CaseInspection:
    try:
        case = preparation.read(image, label)
    except ConfigError as reason:
        return CaseInspection(problems=(str(reason),))
    counts = dict[float | str, int]()
    for index, (name, value) in enumerate((preparation.classes or {}).items()):
        count = 0 if case.mask is None else int((case.mask.array == index).sum())
        if count:
            counts[f"{case.foreground if value is None else value} {name}"] = count
    statistics = _compute_statistics(case.image)
    entries = case.palette if len(case.palette) else None
    notes = _notes((image, case.image), (label, case.mask))
    return CaseInspection(statistics, counts, (), entries, notes, case.foreground)


def _notes(*files: tuple[str | None, Image | None]) -> tuple[tuple[str, str], ...]:
    """Each file with each of its notes."""
    return tuple((str(path), note) for path, read in files if read for note in read.notes)


def _geometry_problems(scan: Image, mask: Image) -> list[str]:
    """The differences in shape or position between a label and its image."""
    if scan.space != mask.space:
        shapes = " and ".join(" x ".join(map(str, image.space)) for image in (scan, mask))
        return [f"image and label differ in shape, {shapes}"]
    difference = position_problem(scan, mask)
    return [] if difference is None else [f"image and label differ in position {difference}"]


def _count_values(mask: Array, name: str, problems: list[str]) -> dict[float | str, int]:
    """The number of pixels of each value of a mask; empty, with a problem added, for an image that is not a mask."""
    if len(mask) > 1:
        problems.append(f"{name} has {len(mask)} channels; a mask has one")
        return {}
    import pandas as pd  # here, because actors import this module and do not need pandas

    counts = pd.Series(mask.ravel(order="K"), copy=False).value_counts(dropna=False).sort_index()
    if len(counts) > MAX_LABEL_VALUES:
        problems.append(
            f"{name} has {len(counts)} different values; a mask has at most {MAX_LABEL_VALUES} "
            "(JPEG compression adds values: save masks as PNG)"
        )
        return {}
    return dict(zip(counts.index.astype(float).tolist(), counts.tolist(), strict=True))


def _read_or_report(path: str | None, role: str, problems: list[str]) -> Image | None:
    """The image at `path`; None, with a problem added, for a file that cannot be read."""
    if path is None:
        return None
    try:
        image = load_image(path, mask=role == "label")
    except FileNotFoundError:
        problems.append(f"{role} {path} does not exist")
        return None
    except ConfigError as reason:
        problems.append(f"{role} {path} {reason}")
        return None
    if not is_finite(image.array):
        problems.append(f"{role} {path} contains NaN or infinity")
    return image


def _compute_statistics(image: Image) -> ImageStatistics:
    spacing = image.spacing if len(image.space) == 3 else None
    finite = image.array if is_finite(image.array) else image.array[np.isfinite(image.array)]
    if not finite.size:
        return ImageStatistics(image.space, spacing, len(image.array), *[np.nan] * 5)
    p1, p99 = np.percentile(finite.flat[:: finite.size // PERCENTILE_SAMPLE + 1], (1, 99))
    intensities = (finite.min(), p1, finite.mean(dtype=np.float64), p99, finite.max())
    return ImageStatistics(image.space, spacing, len(image.array), *map(float, intensities))
