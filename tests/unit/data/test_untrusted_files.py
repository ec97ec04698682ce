"""Malicious tables and images: reading them runs no code and does not fill the memory."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data import image_reader, memory_limit, table_file
from raysim.data.file_inspection import inspect_case
from raysim.data.file_paths import check_url
from raysim.data.run_command import _shape
from raysim.data.table import read_table
from tests.support.parquet_bombs import PARQUET_BOMBS


class Bomb:
    """An object that creates the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_tables_that_are_too_large_when_decompressed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "MAX_TABLE_BYTES", 1_000_000)
    monkeypatch.setattr(memory_limit, "MAX_TABLE_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", "site,split,image,label\n" + "a,train,x.png,y.png\n" * 200_000)
    assert (tmp_path / "bomb.zip").stat().st_size < 50_000
    with pytest.raises(ConfigError, match="has more than 1,000,000 bytes"):
        read_table(f"zip://table.csv::{tmp_path / 'bomb.zip'}")


def test_parquet_tables_that_are_too_large_when_decoded_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    path.write_bytes(PARQUET_BOMBS["repeated text"]())
    assert path.stat().st_size < 200
    with pytest.raises(ConfigError, match="has more than 250,000,000 bytes"):
        read_table(str(path))
    path.write_bytes(PARQUET_BOMBS["repeated bytes"]())
    with pytest.raises(ConfigError, match=r"bomb.parquet takes more than 375.0 MB of memory to decode; if you trust"):
        read_table(str(path))


def a_volume(file: Path, shape: tuple[int, int, int]) -> Path:
    """A small file with this shape in its header, and with zeros that have 32 MB when decompressed."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    file.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(32_000_000)))
    return file


def test_images_with_too_many_voxels_are_refused(tmp_path: Path) -> None:
    large = a_volume(tmp_path / "large.nii.gz", (4000, 4000, 4000))
    with pytest.raises(ConfigError, match=r"large.nii.gz: would take 256.* GB of memory to read, but a file of 31"):
        image_reader.read_image(str(large))
    assert "would take 256" in inspect_case(str(large), None).problems[0]
    small = a_volume(tmp_path / "small.nii.gz", (10, 10, 10))
    assert image_reader.read_image(str(small)).space == (10, 10, 10)
    assert inspect_case(str(small), None).problems == ()  # what follows the voxels is not read
    picture = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(picture, "PNG")
    (tmp_path / "wide.png").write_bytes(picture.getvalue())
    with pytest.raises(ConfigError, match="exceeds limit"):
        image_reader.read_image(str(tmp_path / "wide.png"))


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_pickle_file_is_not_read_as_a_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(ConfigError):
        read_table(str(tmp_path / name))
    assert not (tmp_path / "mark").exists()


def test_repeated_texts_of_a_parquet_file_are_counted(tmp_path: Path) -> None:
    cell = pa.array(["x" * 1_000_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1500, pa.int32()), cell)
    pq.write_table(pa.table({"site": column}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(ConfigError, match="has more than 250,000,000 bytes uncompressed"):
        read_table(str(tmp_path / "bomb.parquet"))


def test_lists_in_a_parquet_file_are_not_read(tmp_path: Path) -> None:
    rows = {"site": ["a", "b"], "split": ["train"] * 2, "image": ["a.png", "b.png"], "label": ["1", "0"]}
    pq.write_table(pa.table({**rows, "nested": [[1], [2, 3]]}), tmp_path / "t.parquet")
    read = read_table(str(tmp_path / "t.parquet"), check_files=False)
    assert list(read.columns) == ["site", "split", "image", "label"]
    assert read["label"].tolist() == ["1", "0"]


def test_what_precedes_the_voxels_is_limited(tmp_path: Path) -> None:
    for header in (nibabel.Nifti1Header(), nibabel.Nifti2Header()):
        header.set_data_shape((4, 4, 4))
        header["vox_offset"], header["magic"] = 800_000_000, header["magic"]
        content = header.binaryblock + b"\1\0\0\0"
        for name, packed in (("e.nii", content), ("e.nii.gz", gzip.compress(content))):
            (tmp_path / name).write_bytes(packed)
            with pytest.raises(ConfigError, match="declares 8e\\+08 bytes before the voxels; at most 16777216"):
                image_reader.read_image(str(tmp_path / name))


def test_a_scaled_volume_has_the_values_of_nibabel(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-3000, 3000, (5, 6, 7), np.int16)
    volume = nibabel.Nifti1Image(stored, np.eye(4))
    volume.header.set_slope_inter(0.37, -11.3)
    nibabel.save(volume, tmp_path / "v.nii.gz")
    expected = np.asanyarray(nibabel.load(tmp_path / "v.nii.gz").dataobj)
    read = image_reader.read_image(str(tmp_path / "v.nii.gz")).array
    np.testing.assert_array_equal(read[0], expected.astype(np.float32))


def test_a_picture_in_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ConfigError, match="expected a picture in a supported format"):
        image_reader.read_image(str(tmp_path / "a.png"))
    with pytest.raises(ConfigError, match="cannot identify image file"):
        _shape(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "cell",
    [
        "https://user:hunter2@host/a.png",
        "s3://bucket/a.png?X-Amz-Signature=hunter2",
        "https://host/a.png?sv=1&sig=hunter2",
        "https://host/a.png?token=hunter2",
        "zip://a.png::https://host/a.zip?access_token=hunter2",
    ],
)
def test_a_cell_with_a_secret_is_refused_and_the_secret_not_shown(cell: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"site,split,image,label\na,train,{cell},1\n")
    for path in (str(tmp_path / "t.csv"), cell.replace("a.png", "t.csv")):
        with pytest.raises(ConfigError, match="contains a password, a token or a signature; remove it") as caught:
            read_table(path)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "cell", ["github://a:b@/x.png", "reference://x", "simplecache::s3://b/a.png", "http://h/a.png"]
)
def test_only_some_protocols_are_supported(cell: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not supported; use file, s3|contains a password"):
        check_url(cell)
    assert check_url("zip://a.png::s3://bucket/a.zip").startswith("zip")
    assert check_url("/data/a:b.png") == "/data/a:b.png"
