"""Volumes in NRRD, MetaImage, NIfTI pairs, numpy and OME-TIFF have the voxels and the position of the NIfTI file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile

from raysim.core.errors import ConfigError
from raysim.data.cache import fingerprint
from raysim.data.image_formats import is_volume
from raysim.data.image_reader import read_image

VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)  # left, posterior, superior
COSINE, SINE = np.cos(0.3), np.sin(0.3)
DIRECTIONS = np.array([[COSINE, -SINE, 0], [SINE, COSINE, 0], [0, 0, -1]])  # a column for each axis, in LPS
SPACING, ORIGIN = np.array([0.5, 2.0, 3.0]), np.array([10.0, -20.0, 30.0])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_lps() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = DIRECTIONS * SPACING, ORIGIN
    return affine


@pytest.fixture
def expected(tmp_path: Path) -> str:
    nibabel.save(nibabel.Nifti1Image(VOXELS, LPS @ affine_lps()), tmp_path / "expected.nii.gz")
    return str(tmp_path / "expected.nii.gz")


def assert_equal(path: Path | str, expected: str) -> None:
    found, reference = read_image(str(path)), read_image(expected)
    assert is_volume(str(path))
    assert np.array_equal(found.array, reference.array)
    assert found.array.dtype == np.float32
    assert found.affine == pytest.approx(reference.affine, abs=1e-5)
    assert read_image(str(path), mask=True).array.dtype == np.int16


def write_nrrd(path: Path, array: np.ndarray = VOXELS, **header: object) -> Path:
    fields = {
        "space": "left-posterior-superior",
        "space directions": (DIRECTIONS * SPACING).T,
        "space origin": ORIGIN,
        "encoding": "gzip",
    }
    nrrd.write(str(path), array, {key: value for key, value in (fields | header).items() if value is not None})
    return path


def metaimage(content: bytes, **fields: object) -> bytes:
    header: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(map(str, DIRECTIONS.T.ravel())),
        "Offset": "10 -20 30",
        "ElementSpacing": "0.5 2 3",
        "DimSize": "4 5 6",
        "ElementType": "MET_SHORT",
    }
    data_file = {"ElementDataFile": fields.pop("ElementDataFile", "LOCAL")}  # the last field
    given = header | fields | data_file
    text = "".join(f"{name} = {value}\n" for name, value in given.items() if value is not None)
    return text.encode() + content


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd(tmp_path: Path, expected: str, encoding: str) -> None:
    assert_equal(write_nrrd(tmp_path / "x.nrrd", encoding=encoding), expected)


def test_nrrd_in_other_spaces(tmp_path: Path, expected: str) -> None:
    ras = {"space directions": (LPS[:3, :3] @ DIRECTIONS * SPACING).T, "space origin": LPS[:3, :3] @ ORIGIN}
    assert_equal(write_nrrd(tmp_path / "ras.nrrd", space="right-anterior-superior", **ras), expected)
    las = np.diag([1.0, -1.0, 1.0])
    fields = {"space directions": (las @ DIRECTIONS * SPACING).T, "space origin": las @ ORIGIN}
    assert_equal(write_nrrd(tmp_path / "las.nrrd", space="left-anterior-superior", **fields), expected)
    metres = {"space directions": (DIRECTIONS * SPACING).T / 1000, "space origin": ORIGIN / 1000}
    assert_equal(write_nrrd(tmp_path / "m.nrrd", **metres, **{"space units": ["m", "m", "m"]}), expected)


def test_nrrd_without_orientation_has_its_spacing(tmp_path: Path) -> None:
    none = {"space": None, "space directions": None, "space origin": None}
    image = read_image(str(write_nrrd(tmp_path / "x.nrrd", spacings=[0.5, 2.0, 3.0], **none)))
    assert image.spacing == pytest.approx((0.5, 2, 3))
    assert image.notes == ("its header has no orientation; its axes are read as left, posterior, superior, as in ITK",)


@pytest.mark.parametrize("first", [True, False])
def test_channels_of_nrrd(tmp_path: Path, expected: str, first: bool) -> None:
    directions = [None, *(DIRECTIONS * SPACING).T] if first else [*(DIRECTIONS * SPACING).T, None]
    array = np.stack([VOXELS, 2 * VOXELS], 0 if first else -1)
    vectors = np.array([[np.nan] * 3 if each is None else each for each in directions])
    image = read_image(str(write_nrrd(tmp_path / "x.nrrd", array, **{"space directions": vectors})))
    reference = read_image(expected)
    assert np.array_equal(image.array, np.concatenate([reference.array, 2 * reference.array]))
    assert image.affine == pytest.approx(reference.affine)


def test_metaimage(tmp_path: Path, expected: str) -> None:
    raw = VOXELS.tobytes(order="F")
    (tmp_path / "x.mha").write_bytes(metaimage(raw))
    (tmp_path / "z.mha").write_bytes(metaimage(zlib.compress(raw), CompressedData="True"))
    big = VOXELS.astype(">i2").tobytes(order="F")
    (tmp_path / "big.mha").write_bytes(metaimage(big, BinaryDataByteOrderMSB="True"))
    (tmp_path / "x.mhd").write_bytes(metaimage(b"", ElementDataFile="x.raw"))
    (tmp_path / "x.raw").write_bytes(raw)
    for name in ("x.mha", "z.mha", "big.mha", "x.mhd"):
        assert_equal(tmp_path / name, expected)


def test_channels_of_metaimage(tmp_path: Path, expected: str) -> None:
    content = np.stack([VOXELS, 2 * VOXELS]).tobytes(order="F")
    (tmp_path / "x.mha").write_bytes(metaimage(content, ElementNumberOfChannels=2))
    assert np.array_equal(read_image(str(tmp_path / "x.mha")).array[1:], 2 * read_image(expected).array)


@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_simpleitk(tmp_path: Path, expected: str, name: str, compressed: bool) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, which writes the files, is not installed")
    image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
    image.SetSpacing(SPACING.tolist())
    image.SetOrigin(ORIGIN.tolist())
    image.SetDirection(DIRECTIONS.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / name), compressed)
    assert_equal(tmp_path / name, expected)


@pytest.mark.parametrize("named", ["x.hdr", "x.img"])
def test_a_pair_of_nifti_files(tmp_path: Path, expected: str, named: str) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, LPS @ affine_lps()), tmp_path / "x.hdr")
    assert_equal(tmp_path / named, expected)
    before = fingerprint(str(tmp_path / named))
    (tmp_path / "x.img").write_bytes((tmp_path / "x.img").read_bytes() + b"\0")
    assert fingerprint(str(tmp_path / named)) != before


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays(tmp_path: Path, order: str, suffix: str) -> None:
    def save(name: str, array: np.ndarray) -> str:
        array = np.asarray(array, order=order)
        np.save(tmp_path / name, array) if suffix == "npy" else np.savez_compressed(tmp_path / name, a=array)
        return str(tmp_path / f"{name}.{suffix}")

    volume = save("volume", VOXELS)
    assert np.array_equal(read_image(volume).array, VOXELS[None])
    assert read_image(volume).affine.tolist() == np.eye(4).tolist()
    channels = read_image(save("channels", np.stack([VOXELS, -VOXELS], -1)))
    assert np.array_equal(channels.array, np.stack([VOXELS, -VOXELS]))
    assert is_volume(volume)
    assert not is_volume(grey := save("grey", VOXELS[0]))
    assert np.array_equal(read_image(grey).array, VOXELS[:1])
    assert not is_volume(rgb := save("rgb", VOXELS[:, :, :3]))
    assert np.array_equal(read_image(rgb).array, VOXELS[:, :, :3].transpose(2, 0, 1))


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_ome_tiff(tmp_path: Path, axes: str) -> None:
    array = np.arange(3 * 2 * 5 * 7, dtype=np.uint16).reshape(3, 2, 5, 7)  # Z, C, Y, X
    sizes = {f"PhysicalSize{axis}": mm for axis, mm in zip("XYZ", (0.5, 0.25, 2), strict=True)}
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in "XY"}
    stored = array if axes == "ZCYX" else array.swapaxes(0, 1)
    metadata = {"axes": axes, **sizes, **units}
    tifffile.imwrite(tmp_path / "x.ome.tif", stored, metadata=metadata, photometric="minisblack", compression="zlib")
    image = read_image(str(tmp_path / "x.ome.tif"))
    assert is_volume(str(tmp_path / "x.ome.tif"))
    assert np.array_equal(image.array, array.transpose(1, 3, 2, 0))
    assert image.spacing == pytest.approx((0.5, 0.25, 0.002))  # micrometres are the default


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_image(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def edited(path: Path, old: bytes, new: bytes) -> Path:
    write_nrrd(path, encoding="raw")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


NRRD_ERRORS = {
    (b"encoding: raw", b"encoding: hex"): "its encoding is hex; store it with the encoding raw, gzip or bzip2",
    (b"type: int16", b"type: block"): "its data type is block; expected one real number per voxel",
    (b"sizes: 4 5 6", b"sizes: 4 5 7"): "ends in slice 7 of 7; replace it with an intact file",
    (b"sizes: 4 5 6", b"sizes: 4 5 0"): "its header declares the size (4, 5, 0); replace it with an intact file",
    (b"encoding: raw", b"encoding: raw\nbyte skip: 9"): "has bytes or lines that are skipped before the voxels; store "
    "it without them",
    (b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"): "has its voxels in another file; store header and "
    "voxels in one .nrrd file",
    (
        b"encoding: raw",
        b'encoding: raw\nspace units: "pc" "pc" "pc"',
    ): "its space units are ['pc']; expected one of mm, cm, m, um, microns, millimeters for all axes",
    (b"endian: little", b"endian: none"): "its header has endian 'none'; expected little or big",
    (b"sizes: 4 5 6", b"sizes: 40000 50000 60"): "would take 528.0 GB of memory to read",
    (b"NRRD000", b"NRRX000"): "cannot be read: Invalid NRRD magic line",
}


@pytest.mark.parametrize("edit", NRRD_ERRORS)
def test_nrrd_that_is_refused(tmp_path: Path, edit: tuple[bytes, bytes]) -> None:
    assert NRRD_ERRORS[edit] in refused(edited(tmp_path / "x.nrrd", *edit))


METAIMAGE_ERRORS: dict[str, tuple[dict[str, object], str]] = {
    "type": ({"ElementType": "MET_CHAR_ARRAY"}, "its data type is MET_CHAR_ARRAY"),
    "another folder": ({"ElementDataFile": "../x.raw"}, "has its voxels in '../x.raw' (ElementDataFile), which is not"),
    "list": ({"ElementDataFile": "LIST"}, "has its voxels in 'LIST' (ElementDataFile), which is not a file in its"),
    "size": ({"DimSize": "4 5"}, "its header has DimSize = '4 5'; expected 3 numbers"),
    "text": ({"BinaryData": "False"}, "has its voxels as text; store it with binary voxels"),
    "planar": ({"NDims": 2, "DimSize": "4 5", "TransformMatrix": None, "ElementSpacing": None}, "has 2 spatial axes"),
    "skipped": ({"HeaderSize": "-1"}, "its header has HeaderSize = '-1'; expected the bytes before the voxels"),
    "large": ({"DimSize": "9000 9000 90"}, "would take"),
    "short": ({"DimSize": "4 5 9"}, "ends in slice 7 of 9; replace it with an intact file"),
    "flat": ({"ElementSpacing": "0 1 1"}, "does not give each voxel a position"),
}


@pytest.mark.parametrize("name", METAIMAGE_ERRORS)
def test_metaimages_that_are_refused(tmp_path: Path, name: str) -> None:
    fields, message = METAIMAGE_ERRORS[name]
    (tmp_path / "x.mha").write_bytes(metaimage(VOXELS.tobytes(order="F"), **fields))
    assert message in refused(tmp_path / "x.mha")


def a_pickle(path: Path) -> Path:
    np.save(path, np.array([[{}]]), allow_pickle=True)
    return path


def several_arrays(path: Path) -> Path:
    np.savez(path, image=VOXELS, label=VOXELS)
    return path


def analyze(path: Path) -> Path:
    nibabel.save(nibabel.Spm2AnalyzeImage(VOXELS, np.eye(4)), path)
    return path


def half_a_pair(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, np.eye(4)), path)
    path.with_suffix(".img").unlink()
    return path


def times(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((2, 4, 5), np.uint16), metadata={"axes": "TYX"}, photometric="minisblack")
    return path


def absent_pages(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((2, 4, 5), np.uint16), metadata={"axes": "ZYX"}, photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'SizeZ="2"', b'SizeZ="9"'))
    return path


OTHER_ERRORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "x.npy": (a_pickle, "has Python objects, which are not read; store an array of numbers"),
    "x.npz": (several_arrays, "has the arrays image.npy, label.npy; store one array in each file"),
    "x.img": (analyze, "is an Analyze volume, which does not store its orientation"),
    "x.hdr": (half_a_pair, "is one file of a pair, and x.img is not beside it; add that file"),
    "t.ome.tif": (times, "has 2 time points; store each in a separate file"),
    "p.ome.tif": (absent_pages, "has 2 pages, but 1 channels of 9 slices in its OME-XML"),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    write, message = OTHER_ERRORS[name]
    assert message in refused(write(tmp_path / name))


def test_a_compressed_stream_that_ends_early_is_refused(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "x.nrrd")
    content = (tmp_path / "x.nrrd").read_bytes()
    (tmp_path / "x.nrrd").write_bytes(content[:-40])
    assert "cannot be read" in refused(tmp_path / "x.nrrd")
    header, _, voxels = content.partition(b"\n\n")
    shorter = gzip.compress(gzip.decompress(voxels)[:50])
    (tmp_path / "x.nrrd").write_bytes(header + b"\n\n" + shorter)
    assert "ends in slice 2 of 6" in refused(tmp_path / "x.nrrd")
