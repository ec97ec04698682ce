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
import pandas as pd
import pytest
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data import image_reader, table_file
from raysim.data.file_inspection import inspect_case
from raysim.data.table import read_table


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
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", "site,split,image,label\n" + "a,train,x.png,y.png\n" * 200_000)
    assert (tmp_path / "bomb.zip").stat().st_size < 50_000
    with pytest.raises(ConfigError, match="has more than 1,000,000 bytes"):
        read_table(f"zip://table.csv::{tmp_path / 'bomb.zip'}")
    rows = pd.DataFrame({name: ["a"] * 200_000 for name in ("site", "split", "image", "label")})
    rows.to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 50_000
    with pytest.raises(ConfigError, match="has 200,000 rows and 4 columns"):
        read_table(str(tmp_path / "bomb.parquet"))


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
    with pytest.raises(ConfigError, match="header declares 64,000,000,000 voxels"):
        image_reader.read_image(str(large))
    assert "header declares 64,000,000,000 voxels" in inspect_case(str(large), None).problems[0]
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
