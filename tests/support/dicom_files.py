"""DICOM files with the header of a patient, written by pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PERSONAL = ("Mustermann^Erika", "PID-47110815", "19611224", "Dr^Geheim", "Klinik Verborgen")
CT, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dataset(array: np.ndarray, **fields: Any) -> FileDataset:
    """A dataset with the pixels (rows, columns) or (frames, rows, columns), and the name of a patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = fields.get("SOPClassUID", CT)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.PatientName, made.PatientID, made.PatientBirthDate = PERSONAL[:3]
    made.ReferringPhysicianName, made.InstitutionName = PERSONAL[3:]
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Modality, made.SeriesNumber, made.InstanceNumber = "CT", 3, 1
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    made.Rows, made.Columns = array.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * array.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(array.dtype.kind == "i")
    made.PixelData = array.tobytes()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def save(path: Path, made: FileDataset) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return str(path)


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    orientation: Sequence[float] = AXIAL,
    **fields: Any,
) -> str:
    """A file for each slice of the volume (columns, rows, slices), whose names are not in the order of the slices.

    `spacing` is in mm between columns, rows and slices.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    for number in range(volume.shape[2]):
        position = np.asarray(origin) + number * spacing[2] * normal
        made = dataset(
            np.ascontiguousarray(volume[..., number].T),
            ImagePositionPatient=position.tolist(),
            ImageOrientationPatient=list(orientation),
            PixelSpacing=[spacing[1], spacing[0]],
            **fields,
        )
        save(folder / f"IM{(number * 7) % 100:03}", made)
    return str(folder)


def frame_groups(position: Sequence[float], segment: int | None = None) -> Dataset:
    """The functional groups of a frame."""
    groups, plane = Dataset(), Dataset()
    plane.ImagePositionPatient = list(position)
    groups.PlanePositionSequence = Items([plane])
    if segment is not None:
        number = Dataset()
        number.ReferencedSegmentNumber = segment
        groups.SegmentIdentificationSequence = Items([number])
    return groups


def shared_groups(spacing: Sequence[float], *, slope: float | None = None, inter: float = 0) -> Dataset:
    groups, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = Items([orientation]), Items([measures])
    if slope is not None:
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, inter
        groups.PixelValueTransformationSequence = Items([values])
    return groups


def write_segmentation(
    path: Path, frames: Sequence[tuple[int, float, np.ndarray]], spacing: Sequence[float], **fields: Any
) -> str:
    """A binary segmentation with these frames: the segment, the position along z, and the pixels (columns, rows)."""
    pixels = np.stack([frame.T != 0 for _, _, frame in frames]).astype(np.uint8)
    given = {
        "SOPClassUID": SEGMENTATION,
        "Modality": "SEG",
        "SegmentationType": "BINARY",
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": Items([shared_groups(spacing)]),
        "PerFrameFunctionalGroupsSequence": Items([frame_groups((0, 0, z), segment) for segment, z, _ in frames]),
    }
    made = dataset(pixels, **given)
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = 0
    packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    made.PixelData = packed + bytes(len(packed) % 2)
    for name, value in fields.items():
        setattr(made, name, value)
    return save(path, made)
