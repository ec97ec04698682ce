"""A folder of DICOM studies: each folder with the slices of a series is an image, and segmentations are masks.

No field about a patient leaves this module: patients get numbers in the order in which they are found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.dicom_headers import (
    check_one_series,
    damage_reported,
    dicom_files,
    is_segmentation,
    is_series_folder,
    load_pydicom,
    read_header,
)
from raysim.data.folder_layouts import ScannedCase
from raysim.data.image_formats import DICOM_SUFFIX

IDENTITY = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "ReferencedSeriesSequence"]


class _Series(NamedTuple):
    path: Path  # the folder of the slices, or the file with all frames
    patient: str  # the identifier in the header, never written
    uid: str
    segmented: str | None  # the identifier of the series that a segmentation refers to; None for an image


def find_dicom_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The series below `root`, each with its segmentation; none without a DICOM file with positions.

    Raises ConfigError for a folder with several series, and for several segmentations of one.
    """
    found = [series for folder in _folders(root) for series in _series(folder, notes)]
    numbers = {patient: f"p{n}" for n, patient in enumerate(dict.fromkeys(series.patient for series in found), 1)}
    labels: dict[str, Path] = {}
    for series in found:
        if series.segmented is not None and labels.setdefault(series.segmented, series.path) != series.path:
            raise ConfigError(
                f"{series.path} and {labels[series.segmented]} are segmentations of one series; keep one of them"
            )
    images = [series for series in found if series.segmented is None]
    if absent := labels.keys() - {series.uid for series in images}:
        notes.append(f"segmentations without their series, left out: {len(absent)}")
    return [ScannedCase(root.name, s.path, labels.get(s.uid), patient=numbers[s.patient]) for s in images]


def _folders(root: Path) -> list[Path]:
    """The folders below `root` with files of DICOM volumes."""
    return [Path(folder) for folder, _, _ in sorted(os.walk(root)) if is_series_folder(folder)]


def _series(folder: Path, notes: list[str]) -> list[_Series]:
    """The series of a folder, and its segmentations, which may be in the folder of their series."""
    try:
        return _read_series(folder, notes)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def _read_series(folder: Path, notes: list[str]) -> list[_Series]:
    headers = {file: read_header(file) for file in dicom_files(str(folder))}
    masks = [file for file, header in headers.items() if is_segmentation(header)]
    slices = {file: header for file, header in headers.items() if file not in masks}
    several = [file for file, header in slices.items() if "PerFrameFunctionalGroupsSequence" in header]
    if unnamed := [Path(file).name for file in (*masks, *several) if not DICOM_SUFFIX.search(file)]:
        name = unnamed[0]
        raise ConfigError(f"{name} has several frames, so it is an image without other files; rename it to {name}.dcm")
    found = [_identify(Path(file), file, is_mask=True) for file in masks]
    if not slices:
        return found
    if several:
        return found + [_identify(Path(file), file, is_mask=False) for file in several]
    check_one_series(slices)
    if len(slices) == 1:
        notes.append(f"{folder} has one slice and is left out")
        return found
    if masks:
        raise ConfigError(
            f"has {pluralize(len(slices), 'slice')} and a segmentation, {Path(masks[0]).name}; move the segmentation "
            "to another folder"
        )
    return [*found, _identify(folder, next(iter(slices)), is_mask=False)]


def _identify(path: Path, file: str, *, is_mask: bool) -> _Series:
    with damage_reported():
        header: Any = load_pydicom().dcmread(file, stop_before_pixels=True, specific_tags=IDENTITY)
        patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or path)
        referenced = header.get("ReferencedSeriesSequence")
        segmented = str(referenced[0].SeriesInstanceUID) if is_mask and referenced else ("" if is_mask else None)
        return _Series(path, patient, str(header.get("SeriesInstanceUID")), segmented)
