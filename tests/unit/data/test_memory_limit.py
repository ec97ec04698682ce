"""Files that take too much memory are refused by their header; the limit can be raised."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data import memory_limit
from raysim.data.file_inspection import inspect_case
from raysim.data.image_reader import read_image
from raysim.data.memory_limit import check_memory
from raysim.data.table import read_table
from tests.support.parquet_bombs import PARQUET_BOMBS

SIDE = 64
GREY = np.zeros((SIDE, SIDE), np.uint8)
DEEP = np.zeros((SIDE, SIDE, 3), np.uint16)
FILES: dict[str, Callable[[Path], object]] = {  # a file of each format, as a function that writes it
    **{
        name: lambda path: Image.fromarray(np.dstack([GREY] * 3)).save(path)
        for name in ("a.png", "a.jpg", "a.tif", "a.bmp", "a.gif", "a.jp2")
    },
    "webp.png": lambda path: Image.fromarray(GREY).save(path, "WEBP", lossless=True),
    "deep.png": lambda path: path.write_bytes(imagecodecs.png_encode(DEEP)),
    "deep.jp2": lambda path: path.write_bytes(imagecodecs.jpeg2k_encode(DEEP, level=0)),
    "deep.tif": lambda path: tifffile.imwrite(path, DEEP, photometric="rgb", compression="zlib"),
    "tile.tif": lambda path: tifffile.imwrite(path, GREY[:9, :9], compression="lzw", tile=(SIDE, SIDE)),
    "deep_tile.tif": lambda path: tifffile.imwrite(path, DEEP[:9, :9, 0], compression="lzw", tile=(SIDE, SIDE)),
    "a.nii": lambda path: nibabel.save(nibabel.Nifti1Image(GREY[..., None], np.eye(4)), path),
    "a.nii.gz": lambda path: nibabel.save(nibabel.Nifti1Image(GREY[..., None].astype(np.float64), np.eye(4)), path),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_refused_by_its_header_and_read_with_a_higher_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    FILES[name](path)
    assert read_image(str(path)).array.size
    monkeypatch.setattr(memory_limit, "MAX_RATIO", 0)
    monkeypatch.setattr(memory_limit, "ANY_FILE", SIDE * SIDE * 4)
    message = rf"{name}: would take .*B of memory to read, but a file of .*B may take 16.4 kB; .*_GB=1"
    with pytest.raises(ConfigError, match=message):
        read_image(str(path))
    assert "would take" in inspect_case(str(path), None).problems[0]
    monkeypatch.setenv("RAYSIM_FILE_MEMORY_GB", "1")
    assert read_image(str(path)).array.size


def test_tables_are_refused_by_their_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(PARQUET_BOMBS["many rows"]())
    with pytest.raises(ConfigError, match=r"t.parquet would take 1.1 GB of memory to read"):
        read_table(str(tmp_path / "t.parquet"), check_files=False)
    rows = pd.DataFrame({name: ["a"] * 1000 for name in ("site", "split", "image", "label")})
    rows.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(memory_limit, "MAX_RATIO", 0)
    monkeypatch.setattr(memory_limit, "ANY_FILE", 200_000)
    with pytest.raises(ConfigError, match=r"t.csv would take .*kB of memory to read"):
        read_table(str(tmp_path / "t.csv"), check_files=False)


def test_the_limit_is_absolute_and_relative_to_the_size_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(750e6, 0)
    check_memory(2e9, 20_000_000)
    check_memory(6e9, 10**9)
    for needed, stored in ((751e6, 1000), (2.1e9, 20_000_000), (6.1e9, 10**9)):
        with pytest.raises(ConfigError, match="would take"):
            check_memory(needed, stored)
    monkeypatch.setenv("RAYSIM_FILE_MEMORY_GB", "6.5")
    check_memory(6.1e9, 0)
    for text in ("much", "0", "-1", "nan"):
        monkeypatch.setenv("RAYSIM_FILE_MEMORY_GB", text)
        with pytest.raises(ConfigError, match=f"RAYSIM_FILE_MEMORY_GB is '{text}'; expected gigabytes, such as 8"):
            check_memory(1, 1)


def test_a_file_in_an_archive_counts_as_large_as_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((500, 500, 3), np.uint8)).save(tmp_path / "a.bmp")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.bmp", "a.bmp")
    monkeypatch.setattr(memory_limit, "ANY_FILE", 1_000_000)
    read_image(str(tmp_path / "a.bmp"))
    with pytest.raises(ConfigError, match=r"would take 4.0 MB of memory to read, but a file of 888 B may take 1.0 MB"):
        read_image(f"zip://a.bmp::{tmp_path / 'a.zip'}")


def test_the_size_of_a_jpeg_2000_is_that_of_its_code_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "ANY_FILE", 1_000_000)
    Image.fromarray(GREY).save(tmp_path / "a.jp2")
    content = (tmp_path / "a.jp2").read_bytes()
    start = content.index(b"\xff\x4f\xff\x51")
    empty_box = struct.pack(">I4s", 8, b"free")  # behind it, Pillow only reads the size in the box before it
    many = content[: start - 8] + empty_box + content[start - 8 : start + 40] + b"\x27\x10" + content[start + 42 :]
    (tmp_path / "a.jp2").write_bytes(many)
    with pytest.raises(ConfigError, match=r"would take 491.5 MB"):  # 64 x 64 pixels with 10,000 channels
        read_image(str(tmp_path / "a.jp2"))


def code_stream(side: int, block: int, precinct: int | None, component: tuple[int, int] | None = None) -> bytes:
    """A JPEG 2000 file of one tile without data; blocks and precincts by exponent, `component` those of a COC."""
    size = struct.pack(">HHIIIIIIIIH", 41, 0, side, side, 0, 0, side, side, 0, 0, 1) + bytes([7, 1, 1])
    precincts = [] if precinct is None else [precinct | precinct << 4]
    blocks = [block - 2, block - 2, 0, 1, *precincts]
    coding = struct.pack(">HBBHBB", 8 + len(blocks), len(precincts), 0, 1, 0, 0) + bytes(blocks)
    own = (
        b""
        if component is None
        else struct.pack(">BBHBBBBBBBB", 255, 0x53, 10, 0, 1, 0, *[component[0] - 2] * 2, 0, 1, component[1] * 17)
    )
    quantized = struct.pack(">HB", 4, 64) + bytes([64])
    tile = struct.pack(">HHIBB", 10, 0, 214, 0, 1)
    segments = ((0x51, size), (0x52, coding), (0x5C, quantized))
    header = b"".join(bytes([255, marker]) + segment for marker, segment in segments)
    return b"\xff\x4f" + header + own + b"\xff\x90" + tile + b"\xff\x93" + bytes(200) + b"\xff\xd9"


def test_the_tiles_of_jpeg_2000_are_counted(tmp_path: Path) -> None:
    content = bytearray(code_stream(255, 6, None))
    content[24:32] = struct.pack(">II", 1, 1)  # width and height of a tile
    (tmp_path / "a.j2k").write_bytes(content)
    with pytest.raises(ConfigError, match=r"would take 911.1 MB"):  # 65,025 tiles
        read_image(str(tmp_path / "a.j2k"))


def test_small_blocks_of_jpeg_2000_are_refused(tmp_path: Path) -> None:
    for name, blocks in {"a": (6, None), "b": (4, 4), "c": (6, 15, (5, 5))}.items():
        (tmp_path / f"{name}.j2k").write_bytes(code_stream(300, *blocks))
        read_image(str(tmp_path / f"{name}.j2k"))
    for name, blocks in {"d": (3, None), "e": (6, 0), "f": (6, 15, (3, 15)), "g": (6, None, (6, 1))}.items():
        (tmp_path / f"{name}.j2k").write_bytes(code_stream(300, *blocks))
        with pytest.raises(ConfigError, match=f"{name}.j2k: is a JPEG 2000 picture with blocks below 16 x 16 values"):
            read_image(str(tmp_path / f"{name}.j2k"))


def test_masks_of_integers_keep_their_type_and_others_are_float32(tmp_path: Path) -> None:
    for stored, mask in ((np.uint8, np.uint8), (np.int16, np.int16), (np.float64, np.float32)):
        values = np.array([[[0, 1], [2, 3]]]).astype(stored)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, 1, 1, 1])), tmp_path / "a.nii.gz")
        image, label = (read_image(str(tmp_path / "a.nii.gz"), mask=mask) for mask in (False, True))
        assert (image.array.dtype, label.array.dtype) == (np.float32, mask)
        assert image.array.tolist() == label.array.tolist() == values[None].tolist()


def test_a_volume_that_ends_early_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:-24])
    with pytest.raises(ConfigError, match=r"a.nii: ends in slice 5 of 5; replace it with an intact file"):
        read_image(str(tmp_path / "a.nii"))


def test_a_deep_tiff_with_the_compression_of_a_picture_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(7)
    with pytest.raises(ConfigError, match="more than 8 bits per channel and JPEG compression; store it uncompressed"):
        read_image(str(tmp_path / "a.tif"))
