"""A file below 1 MB takes less than 1 GB of memory, however large it is when it is decoded; real large files are read.

The peak is measured in a new process, because that of a process never falls.
"""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from tests.support.dicom_files import dataset, frame_groups, save, shared_groups
from tests.support.parquet_bombs import PARQUET_BOMBS

pytestmark = pytest.mark.slow
MAX_MEMORY = 1_000_000_000
READ = """
import json, resource, sys, warnings
import PIL.Image, imagecodecs, nibabel, nrrd, pyarrow.parquet, tifffile
from raysim.core.errors import ConfigError
from raysim.data.dicom_headers import load_pydicom
from raysim.data.file_inspection import inspect_case
from raysim.data.image_reader import read_image
from raysim.data.table import read_table

def peak():
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + children) * 1024

warnings.simplefilter("ignore")
imagecodecs.png_decode, imagecodecs.jpeg2k_decode, imagecodecs.lzw_decode  # imported on first use
PIL.Image.init()
load_pydicom()
idle, path, results = peak(), sys.argv[1], []
actions = [lambda: read_image(path), lambda: read_image(path, mask=True), lambda: inspect_case(None, path)]
if path.endswith(("csv", "parquet", "zip")):
    url = f"zip://table.csv::{path}" if path.endswith("zip") else path
    actions = [lambda: read_table(url, check_files=False)]
for action in actions:
    try:
        action()
        results.append("read")
    except ConfigError as error:
        results.append(str(error))
print(json.dumps([peak() - idle, results[0]]))
"""
Bomb = Callable[[Path, int], object]  # writes a file with about this number of pixels or voxels


def measure(path: Path) -> tuple[int, str]:
    """The bytes of memory that reading the file took, and `read`, or the error of the first way to read it."""
    output = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True).stdout
    peak, result = json.loads(output)
    return peak, result


def picture(mode: str, **options: object) -> Bomb:
    def write(path: Path, pixels: int) -> None:
        side = int(pixels**0.5)
        Image.new(mode, (side, side)).save(path, **options)

    return write


def deep(encode: Callable[[Path, np.ndarray], object]) -> Bomb:
    return lambda path, pixels: encode(path, np.zeros((int(pixels**0.5), int(pixels**0.5), 3), np.uint16))


def rle_bmp(path: Path, pixels: int) -> None:
    """A BMP whose compressed pixels are one jump to its end."""
    side = int(pixels**0.5)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    jumps = b"\0\2\0\xff" * (side // 255 + 1) + b"\0\1"
    path.write_bytes(struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024) + header + jumps)


def large_tile(path: Path, pixels: int) -> None:
    """A TIFF of 9 x 9 pixels whose only tile is larger."""
    side = int(pixels**0.5) // 16 * 16
    tifffile.imwrite(path, np.zeros((9, 9), np.uint8), compression="zlib", tile=(side, side))


def volume(dtype: type, slope: float = 1) -> Bomb:
    def write(path: Path, voxels: int) -> None:
        header = nibabel.Nifti1Header()
        header.set_data_dtype(dtype)
        header.set_data_shape((500, 500, voxels // 250_000))
        header.set_slope_inter(slope, 0)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with gzip.open(path, "wb") as stream:
            stream.write(header.binaryblock + bytes(4))
            for _ in range(voxels // 250_000):
                stream.write(bytes(250_000 * np.dtype(dtype).itemsize))

    return write


def nrrd(path: Path, voxels: int) -> None:
    header = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 500 500 {voxels // 250_000}\nencoding: gzip\n\n"
    path.write_bytes(header.encode() + gzip.compress(bytes(voxels)))


def metaimage(path: Path, voxels: int) -> None:
    fields = f"NDims = 3\nDimSize = 500 500 {voxels // 250_000}\nElementType = MET_UCHAR\nCompressedData = True\n"
    path.write_bytes(f"{fields}ElementDataFile = LOCAL\n".encode() + zlib.compress(bytes(voxels), 9))


def array(path: Path, voxels: int) -> None:
    np.savez_compressed(path, np.zeros((500, 500, voxels // 250_000), np.uint8))


def stack(path: Path, voxels: int) -> None:
    """An OME-TIFF of few large pages."""
    pages = np.broadcast_to(np.uint16(0), (voxels // 4_000_000, 2000, 2000))
    tifffile.imwrite(path, pages, metadata={"axes": "ZYX"}, compression="zstd", photometric="minisblack")


def dicom(frames: int) -> Bomb:
    """A DICOM file with this number of frames, in JPEG 2000."""

    def write(path: Path, pixels: int) -> None:
        side = int((pixels / frames) ** 0.5)
        frame = imagecodecs.jpeg2k_encode(np.zeros((side, side), np.uint16), codecformat="J2K", level=0)
        made = dataset(np.zeros((1, 1), np.uint16), NumberOfFrames=frames, Rows=side, Columns=side)
        if frames > 1:
            made.SharedFunctionalGroupsSequence = Items([shared_groups((1, 1, 1))])
            made.PerFrameFunctionalGroupsSequence = Items([frame_groups((0, 0, z)) for z in range(frames)])
        made.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.90")
        made.PixelData = encapsulate([frame] * frames)
        save(path, made)

    return write


def tables(path: Path, rows: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", "site,split,image,label\n" + "a,train,x.png,0\n" * rows)


def parquet(path: Path, rows: int) -> None:
    cells = pa.array(["a"]).take(np.zeros(rows, int))
    pq.write_table(pa.table(dict.fromkeys(("site", "split", "image", "label"), cells)), path)


TIFF = ("tiff_lzw", "tiff_adobe_deflate", "zstd")
BOMBS: dict[str, tuple[Bomb, float, float]] = {  # and a size that is read and one that is refused, in millions
    "grey.png": (picture("L"), 124, 130),
    "colour.png": (picture("RGB"), 46, 60),
    "palette.png": (picture("P"), 46, 60),
    "deep.png": (deep(lambda path, array: path.write_bytes(imagecodecs.png_encode(array, level=9))), 31, 46),
    "colour.jpg": (picture("RGB", quality=20), 46, 60),
    "progressive.jpg": (picture("RGB", quality=20, progressive=True), 46, 60),
    **{f"{name}.tif": (picture("RGB", compression=name), 46, 60) for name in TIFF},
    "packbits.tif": (picture("L", compression="packbits"), 46, 130),
    "deep.tif": (
        deep(lambda path, array: tifffile.imwrite(path, array, compression="zstd", photometric="rgb")),
        40,
        46,
    ),
    "tile.tif": (large_tile, 100, 150),
    "colour.jp2": (picture("RGB"), 20, 30),
    "deep.jp2": (deep(lambda path, array: path.write_bytes(imagecodecs.jpeg2k_encode(array, level=0))), 20, 30),
    "rle.bmp": (rle_bmp, 46, 60),
    "frame.gif": (picture("P"), 46, 60),
    "webp.png": (picture("RGBA", format="WEBP", lossless=True), 31, 46),
    "bytes.nii.gz": (volume(np.uint8), 180, 190),
    "scaled.nii.gz": (volume(np.int16, 2.5), 180, 190),
    "doubles.nii.gz": (volume(np.float64), 100, 190),
    "bytes.nrrd": (nrrd, 180, 190),
    "bytes.mha": (metaimage, 180, 190),
    "bytes.npz": (array, 180, 190),
    "stack.ome.tif": (stack, 164, 190),
    "picture.dcm": (dicom(1), 18, 20),
    "frames.dcm": (dicom(20), 120, 190),
    "table.zip": (tables, 1.4, 1.6),
    "table.parquet": (parquet, 2.0, 2.6),
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_largest_file_that_is_read_takes_less_than_a_gigabyte(tmp_path: Path, name: str) -> None:
    write, millions, _ = BOMBS[name]
    path = tmp_path / name
    write(path, int(millions * 1e6))
    assert path.stat().st_size < 1_000_000
    peak, result = measure(path)
    assert "would take" not in result
    assert peak < MAX_MEMORY


@pytest.mark.parametrize("name", BOMBS)
def test_a_larger_file_is_refused_before_it_is_decoded(tmp_path: Path, name: str) -> None:
    write, _, millions = BOMBS[name]
    path = tmp_path / name
    write(path, int(millions * 1e6))
    peak, result = measure(path)
    assert "would take" in result
    assert peak < MAX_MEMORY / 3


@pytest.mark.parametrize("name", PARQUET_BOMBS)
def test_a_parquet_file_with_false_sizes_takes_less_than_a_gigabyte(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(PARQUET_BOMBS[name]())
    assert path.stat().st_size < 1_000_000
    peak, result = measure(path)
    assert "of memory to" in result or "cannot be read as a table" in result
    assert peak < MAX_MEMORY


def test_real_large_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (2000, 3000, 3), np.uint8)).save(tmp_path / "a.jpg")
    scan = (random.normal(0, 20, (512, 512, 300)) + np.linspace(-1000, 1000, 300)).astype(np.int16)
    monkeypatch.setattr(nibabel.openers.Opener, "default_compresslevel", 1)
    nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), tmp_path / "ct.nii.gz")
    mask = (scan > 500).astype(np.uint8)
    mask[:, :, 100:] = 0
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    for name in ("a.jpg", "ct.nii.gz", "mask.nii.gz"):
        peak, result = measure(tmp_path / name)
        assert result == "read"
        assert peak < MAX_MEMORY
