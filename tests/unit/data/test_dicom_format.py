"""DICOM series, files with several frames, pictures and segmentations. Values by hand."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, RLELossless

from raysim.core.errors import ConfigError
from raysim.data.cache import fingerprint
from raysim.data.case_preparation import CasePreparation
from raysim.data.file_inspection import inspect_case
from raysim.data.file_paths import missing_files
from raysim.data.image_formats import is_volume
from raysim.data.image_reader import read_image
from tests.support.dicom_files import (
    PERSONAL,
    dataset,
    frame_groups,
    save,
    shared_groups,
    write_segmentation,
    write_series,
)

VOXELS = (np.arange(120).reshape(4, 5, 6) * 3).astype(np.int16)  # columns, rows, slices
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
COSINE, SINE = float(np.cos(0.2)), float(np.sin(0.2))
OBLIQUE = (COSINE, SINE, 0.0, -SINE, COSINE, 0.0)


def refused(path: str | Path, **options: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        read_image(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(text in message for text in PERSONAL)
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1)])
def test_a_series_has_the_position_of_the_same_nifti_file(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    spacing, origin = np.array([0.5, 0.75, 2.0]), (10.0, -20.0, 30.0)
    folder = write_series(tmp_path / "series", VOXELS, origin=origin, spacing=spacing, orientation=orientation)
    affine = np.eye(4)
    directions = np.array([orientation[:3], orientation[3:], np.cross(orientation[:3], orientation[3:])])
    affine[:3, :3], affine[:3, 3] = directions.T * spacing, origin
    nibabel.save(nibabel.Nifti1Image(VOXELS, LPS @ affine), tmp_path / "x.nii")
    found, expected = read_image(folder), read_image(str(tmp_path / "x.nii"))
    assert is_volume(folder)
    assert np.array_equal(found.array, expected.array)
    assert found.affine == pytest.approx(expected.affine, abs=1e-4)
    assert found.notes == ()


def test_a_series_by_url(tmp_path: Path) -> None:
    expected = read_image(write_series(tmp_path / "series", VOXELS)).array
    store = fsspec.filesystem("memory")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "series").iterdir()):
            archive.write(file, f"series/{file.name}")
            store.pipe(f"/dicom/series/{file.name}", file.read_bytes())
    for url in ("memory://dicom/series/", f"zip://series/::{tmp_path / 'a.zip'}"):
        assert is_volume(url)
        assert np.array_equal(read_image(url).array, expected)
        assert missing_files([url]) == []
        assert len(fingerprint(url)) == 7


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", VOXELS, RescaleSlope=2, RescaleIntercept=-1024)
    made = pydicom.dcmread(tmp_path / "s" / "IM000")
    made.RescaleSlope, made.RescaleIntercept = 0.5, 1
    made.save_as(tmp_path / "s" / "IM000")
    array = read_image(folder).array[0, ::-1, ::-1]
    assert array.dtype == np.float32
    assert np.array_equal(array[..., 1:], VOXELS[..., 1:] * 2.0 - 1024)
    assert np.array_equal(array[..., 0], VOXELS[..., 0] * 0.5 + 1)


def test_a_change_of_a_slice_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", VOXELS)
    before = fingerprint(folder)
    made = pydicom.dcmread(tmp_path / "s" / "IM000")
    made.save_as(tmp_path / "s" / "IM000")
    assert fingerprint(folder) != before


def test_a_file_with_several_frames(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 2, 4]  # the frames are not in the order of the slices
    frames = np.ascontiguousarray(VOXELS.transpose(2, 1, 0)[order])
    shared = shared_groups((0.5, 0.75, 2.0), slope=1, inter=-10)
    groups = [frame_groups((0, 0, 2.0 * z)) for z in order]
    path = tmp_path / "ct.dcm"
    made = dataset(frames, NumberOfFrames=6, SharedFunctionalGroupsSequence=Items([shared]))
    made.PerFrameFunctionalGroupsSequence = Items(groups)
    save(path, made)
    image = read_image(str(path))
    assert is_volume(str(path))
    assert np.array_equal(image.array[0, ::-1, ::-1], VOXELS - 10.0)
    assert image.spacing == pytest.approx((0.5, 0.75, 2.0))


COMPRESSED: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16)),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", lambda a: imagecodecs.jpeg2k_encode(a, codecformat="J2K", level=0)),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_frames(tmp_path: Path, name: str) -> None:
    syntax, encode = COMPRESSED[name]
    pixels = (np.arange(64 * 48).reshape(64, 48) % 4096).astype(np.uint16)
    made = dataset(pixels)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = encapsulate([encode(pixels)])
    save(tmp_path / "x.dcm", made)
    assert np.array_equal(read_image(str(tmp_path / "x.dcm")).array[0], pixels)
    made.Rows = 32
    save(tmp_path / "x.dcm", made)
    assert "is a damaged DICOM file" in refused(tmp_path / "x.dcm")


def test_run_length_encoding(tmp_path: Path) -> None:
    made = dataset(VOXELS[..., 0].copy())
    made.compress(RLELossless)
    save(tmp_path / "x.dcm", made)
    assert np.array_equal(read_image(str(tmp_path / "x.dcm")).array[0], VOXELS[..., 0])


def test_a_file_with_one_frame_is_a_picture(tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    path = save(tmp_path / "x.dcm", dataset(pixels, RescaleSlope=2, RescaleIntercept=1))
    assert not is_volume(path)
    assert np.array_equal(read_image(path).array, pixels[None] * 2.0 + 1)
    white_first = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    inverted = save(tmp_path / "i.dcm", dataset(pixels, **white_first))
    image = read_image(inverted)
    assert np.array_equal(image.array, 4095.0 - pixels[None])
    assert image.notes == ("its value 0 is white (MONOCHROME1), so its values are inverted, as in viewers",)
    assert "is a mask in which 0 is white" in refused(inverted, mask=True)


def test_a_segmentation_is_a_mask_on_the_grid_of_its_image(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", VOXELS, spacing=(1, 1, 2))
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 1:4, 2], mask[1, 1, 4], mask[3, 3, 4] = 1, 1, 2  # slice 3 has none, so the file lacks it
    frames = [(2, 8.0, mask[..., 4] == 2), (1, 4.0, mask[..., 2] == 1), (1, 8.0, mask[..., 4] == 1)]
    label = write_segmentation(tmp_path / "seg.dcm", frames, (1, 1, 2))
    classes = {"background": 0, "liver": 1, "tumour": 2}
    case = CasePreparation(classes, "none", "resize", None, None, slices=False, channels=None)(folder, label)
    assert case.labels is not None
    assert np.array_equal(case.labels[0, 0, ::-1, ::-1], mask)
    inspection = inspect_case(folder, label)
    assert inspection.problems == ()
    assert inspection.counts == {0: 112, 1: 7, 2: 1}


def test_a_label_map_is_a_mask(tmp_path: Path) -> None:
    planes = np.arange(40, dtype=np.uint8).reshape(2, 5, 4) % 3
    shared, groups = shared_groups((1, 1, 2)), [frame_groups((0, 0, z)) for z in (0.0, 2.0)]
    made = dataset(planes, SOPClassUID=LABEL_MAP, SegmentationType="LABELMAP", NumberOfFrames=2)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = Items([shared]), Items(groups)
    path = save(tmp_path / "x.dcm", made)
    assert np.array_equal(read_image(path, mask=True).array[0, ::-1, ::-1], planes.transpose(2, 1, 0))


def several_series(folder: Path) -> Path:
    write_series(folder, VOXELS)
    other = dataset(VOXELS[..., 0].T.copy(), SeriesInstanceUID="1.9", SeriesNumber=7, Modality="MR")
    save(folder / "other", other)
    return folder


def edited(folder: Path, **fields: Any) -> Path:
    write_series(folder, VOXELS)
    made = pydicom.dcmread(folder / "IM014")
    for name, value in fields.items():
        setattr(made, name, value)
    made.save_as(folder / "IM014")
    return folder


def missing_slice(folder: Path) -> Path:
    write_series(folder, VOXELS)
    (folder / "IM014").unlink()
    return folder


def one_slice(folder: Path) -> Path:
    write_series(folder, VOXELS[..., :1])
    return folder


def without(folder: Path, field: str) -> Path:
    write_series(folder, VOXELS)
    made = pydicom.dcmread(folder / "IM014")
    delattr(made, field)
    made.save_as(folder / "IM014")
    return folder


def truncated(folder: Path) -> Path:
    write_series(folder, VOXELS)
    (folder / "IM014").write_bytes((folder / "IM014").read_bytes()[:-20])
    return folder


def text_in_a_number(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(folder, VOXELS)
    content = (folder / "IM014").read_bytes()
    assert b"1.0\\1.0 " in content
    (folder / "IM014").write_bytes(content.replace(b"1.0\\1.0 ", b"Musterm\\"))
    return folder


ERRORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "several series": (
        several_series,
        "has 2 series: number 3 (CT, 6 files), number 7 (MR, 1 file); keep one series in each folder",
    ),
    "missing slice": (
        missing_slice,
        "its slices are not at equal distances: 2 mm between IM007 and IM021, but 1 mm between most; add the missing "
        "slices",
    ),
    "doubled slice": (
        lambda folder: edited(folder, ImagePositionPatient=[0, 0, 3]),
        "has several slices at one position, such as IM014 and IM021; keep one image (phase, echo, or "
        "time) in a folder",
    ),
    "other direction": (
        lambda folder: edited(folder, ImageOrientationPatient=list(OBLIQUE)),
        "its slices differ in orientation or spacing: IM014 and IM000; keep parallel slices with the same spacing",
    ),
    "other size": (
        lambda folder: edited(folder, Rows=4, Columns=5),
        "its slices have several sizes, [(4, 5), (5, 4)]; keep slices of one size",
    ),
    "no position": (
        lambda folder: without(folder, "ImagePositionPatient"),
        "IM014 has no position (ImagePositionPatient, ImageOrientationPatient, PixelSpacing), which a volume needs",
    ),
    "no pixels": (
        lambda folder: without(folder, "Rows"),
        "is a DICOM file of the modality CT without pixels; expected an image",
    ),
    "contours": (
        lambda folder: Path(save(folder / "x.dcm", _contours())),
        "is an RTSTRUCT with contours and not voxels; convert it to NIfTI or to a DICOM segmentation, for example with "
        "dcmrtstruct2nii or plastimatch",
    ),
    "one slice": (one_slice, "has one slice; a volume needs several. To use it as a picture, name the .dcm file"),
    "truncated": (truncated, "is a damaged DICOM file, or one of a kind that raysim does not read; replace it"),
    "text in a number": (text_in_a_number, "is a damaged DICOM file"),
    "a film": (
        lambda folder: Path(save(folder / "x.dcm", dataset(np.zeros((3, 4, 5), np.uint8), NumberOfFrames=3))),
        "has 3 frames without positions, such as a film; store each frame as a picture",
    ),
    "fractions": (
        lambda folder: Path(_segmentation(folder, SegmentationType="FRACTIONAL")),
        "is a DICOM segmentation with fractions; expected one of the type BINARY or LABELMAP",
    ),
    "overlap": (
        lambda folder: Path(_segmentation(folder)),
        "has segments that overlap; a mask has one class for each voxel: store one segment",
    ),
    "large": (
        lambda folder: Path(save(folder / "x.dcm", dataset(np.zeros((4, 5), np.uint8), Rows=60000, Columns=60000))),
        "would take 144.0 GB of memory to read",
    ),
    "empty": (lambda folder: folder.mkdir() or folder, "has no DICOM file; expected a folder with the slices of one"),
}


def _contours() -> pydicom.FileDataset:
    made = dataset(np.zeros((4, 5), np.uint8), Modality="RTSTRUCT")
    del made.Rows, made.Columns, made.PixelData
    return made


def _segmentation(folder: Path, **fields: Any) -> str:
    frame = np.ones((4, 5), bool)
    return write_segmentation(folder / "x.dcm", [(1, 0.0, frame), (2, 0.0, frame)], (1, 1, 1), **fields)


@pytest.mark.parametrize("name", ERRORS)
def test_dicom_that_is_refused(tmp_path: Path, name: str) -> None:
    write, message = ERRORS[name]
    assert message in refused(write(tmp_path / "series"))


def test_a_deflated_file_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    made = dataset(np.zeros((4000, 4000), np.uint16))
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    save(tmp_path / "x.dcm", made)
    assert "is a deflated DICOM file; store it with another transfer syntax" in refused(tmp_path / "x.dcm")
