"""Reads the headers of DICOM files: only the fields about pixels and positions, never those about the patient.

Messages contain no free text of a header, because a damaged or unusual file may have personal data in any field.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.image_formats import DICOM_SUFFIX, IMAGE_SUFFIX, Array, DamagedImageError

FIELDS = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "NumberOfFrames", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SegmentationType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # SOP classes
DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax
MAGIC_OFFSET = 128
INSPECTED = 20  # files of a folder that are opened to find a DICOM file
LOADING = Lock()  # images are read in threads
DAMAGED = "is a damaged DICOM file, or one of a kind that raysim does not read; replace it, or convert it to NIfTI"


@dataclass(frozen=True)
class Slice:
    """The position of one frame of a file.

    position     (3,) of the first voxel, in mm to left, posterior, superior
    orientation  (2, 3) the directions along a row and along a column
    spacing      mm between rows and between columns
    segment      the number of the segment in a segmentation; 0 without one
    """

    file: str
    frame: int
    position: Array
    orientation: Array
    spacing: tuple[float, float]
    slope: float = 1.0
    inter: float = 0.0
    segment: int = 0


def load_pydicom() -> Any:
    """The package, with decoders of imagecodecs, and without messages about the values of headers."""
    with LOADING:
        return _configured_pydicom()


@cache
def _configured_pydicom() -> Any:
    import pydicom
    import pydicom.pixels

    from raysim.data import dicom_codecs

    pixels: Any = pydicom.pixels
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    for syntax in dicom_codecs.DECODER_DEPENDENCIES:
        decoder = pixels.get_decoder(pydicom.uid.UID(syntax))
        decoder.add_plugin(dicom_codecs.PLUGIN, (dicom_codecs.__name__, "decode_frame"))
    return pydicom


@contextmanager
def damage_reported() -> Iterator[None]:
    """Replaces errors of pydicom, which may contain values of a header, by a DamagedImageError without them."""
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception:  # noqa: BLE001 - pydicom raises errors of many types for a damaged file
        raise DamagedImageError(DAMAGED) from None


def is_dicom(file: str) -> bool:
    """Whether the file is a DICOM file, by its content."""
    try:
        with open(file, "rb") as stream:
            stream.seek(MAGIC_OFFSET)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def dicom_files(folder: str) -> list[str]:
    """The DICOM files of a folder, sorted by name; their suffix is not used."""
    files = [entry.path for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file()]
    return [file for file in sorted(files) if is_dicom(file)]


def is_series_folder(folder: str) -> bool:
    """Whether a folder has DICOM files with positions, or damaged ones; radiographs without positions are pictures."""
    entries = sorted((entry for entry in os.scandir(folder) if entry.is_file()), key=lambda entry: entry.name)
    # A folder of a large data set may have thousands of pictures.
    names = [entry.path for entry in entries if not entry.name.startswith(".") and not _is_other_image(entry.name)]
    first = next((name for name in names[:INSPECTED] if is_dicom(name)), None)
    if first is None:
        return False
    try:
        header = read_header(first)
    except ConfigError:
        return True
    return "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header


def _is_other_image(name: str) -> bool:
    return bool(IMAGE_SUFFIX.search(name)) and not DICOM_SUFFIX.search(name)


def read_header(file: str) -> Any:
    """The FIELDS of a file, as a pydicom Dataset. Raises ConfigError for a damaged file."""
    pydicom = load_pydicom()
    with damage_reported():
        # Before the rest: pydicom decompresses all of a deflated file when it opens it.
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") == DEFLATED:
            raise ConfigError(
                "is a deflated DICOM file; store it with another transfer syntax: dcmconv --write-xfer-little FILE OUT"
            )
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=FIELDS)


def is_segmentation(header: Any) -> bool:
    return header.get("SOPClassUID") in SEGMENTATIONS


def frame_count(header: Any) -> int:
    return int(header.get("NumberOfFrames") or 1)


def check_pixels(header: Any) -> None:
    """Raises ConfigError for a file that is not an image, such as an RTSTRUCT."""
    if header.get("Rows") and header.get("Columns"):
        return
    if modality(header) == "RTSTRUCT":
        raise ConfigError(
            "is an RTSTRUCT with contours and not voxels; convert it to NIfTI or to a DICOM segmentation, for example "
            "with dcmrtstruct2nii or plastimatch"
        )
    raise ConfigError(f"is a DICOM file of the modality {modality(header)} without pixels; expected an image")


def modality(header: Any) -> str:
    """The code of the modality; `unknown` for a text that is no code."""
    found = str(header.get("Modality") or "")
    return found if re.fullmatch(r"[A-Z]{2,12}", found) else "unknown"


def series_number(header: Any) -> str:
    """The number of the series; `?` for a text that is no number."""
    found = str(header.get("SeriesNumber", ""))
    return found if re.fullmatch(r"\d{1,9}", found) else "?"


def check_one_series(headers: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the numbers of the series, for files of several series."""
    found: dict[str, list[Any]] = {}
    for header in headers.values():
        found.setdefault(str(header.get("SeriesInstanceUID")), []).append(header)
    if len(found) > 1:
        listed = ", ".join(
            f"number {series_number(group[0])} ({modality(group[0])}, {pluralize(len(group), 'file')})"
            for group in list(found.values())[:8]
        )
        raise ConfigError(f"has {len(found)} series: {listed}; keep one series in each folder")


def slices(file: str, header: Any) -> list[Slice]:
    """The position of each frame. Raises ConfigError for frames without a position."""
    with damage_reported():
        if "PerFrameFunctionalGroupsSequence" not in header:
            if frame_count(header) > 1:
                raise ConfigError(
                    f"has {frame_count(header)} frames without positions, such as a film; store each frame as a picture"
                )
            return [_slice(file, 0, [header])]
        shared = header.get("SharedFunctionalGroupsSequence") or [None]
        frames = header.PerFrameFunctionalGroupsSequence
        return [_slice(file, number, [*_groups(frame), *_groups(shared[0])]) for number, frame in enumerate(frames)]


def _groups(item: Any) -> Sequence[Any]:
    """The functional groups of a frame: the first item of each sequence."""
    return [element.value[0] for element in item or () if element.VR == "SQ" and element.value]


def _slice(file: str, frame: int, groups: Sequence[Any]) -> Slice:
    def find(name: str) -> Any:
        return next((group[name].value for group in groups if name in group and group[name].value is not None), None)

    position, orientation = find("ImagePositionPatient"), find("ImageOrientationPatient")
    spacing, segment = find("PixelSpacing"), find("ReferencedSegmentNumber")
    if not position or not orientation or not spacing:
        raise ConfigError(
            f"{os.path.basename(file)} has no position (ImagePositionPatient, ImageOrientationPatient, PixelSpacing), "
            "which a volume needs"
        )
    slope, inter = find("RescaleSlope"), find("RescaleIntercept")
    return Slice(
        file,
        frame,
        np.array(position, float).reshape(3),
        np.array(orientation, float).reshape(2, 3),
        (float(spacing[0]), float(spacing[1])),
        1.0 if slope is None else float(slope),
        0.0 if inter is None else float(inter),
        0 if segment is None else int(segment),
    )
