"""Decodes MetaImage volumes: `.mha`, and `.mhd` with its file of voxels in the same folder."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, Image
from raysim.data.voxel_stream import LPS_TO_RAS, StoredVoxels, read_volume

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
MAX_HEADER = 65_536  # bytes
LAST_KEY = "ElementDataFile"
LOCAL = ("LOCAL", "Local", "local")


def decode_metaimage(file: str, stored: int, mask: bool) -> Image:
    """The volume in the orientation right, anterior, superior. A fourth axis has the channels.

    Raises ConfigError for a volume that cannot be used, and for one that takes more memory than a file of `stored`
    bytes may take.
    """
    with open(file, "rb") as stream:
        header = read_header(stream)
        shape = tuple(_numbers(header, "DimSize", int(header.get("NDims", 3))).astype(int).tolist())
        channels, code = int(header.get("ElementNumberOfChannels", 1)), TYPES.get(header.get("ElementType", ""))
        if code is None:
            raise ConfigError(f"its data type is {header.get('ElementType')}; expected one real number per voxel")
        big = _is_true(header, "BinaryDataByteOrderMSB") or _is_true(header, "ElementByteOrderMSB")
        dtype = np.dtype(code).newbyteorder(">" if big else "<")
        channel_axis = 0 if channels > 1 else 3 if len(shape) == 4 else None
        voxels = StoredVoxels(dtype, (channels, *shape) if channels > 1 else shape, channel_axis)
        affine = _affine(header, len(shape))
        if (name := header[LAST_KEY]) in LOCAL:
            return read_volume(_decompressed(header, stream), voxels, affine, stored, mask)
    with open(_voxel_file(file, name), "rb") as separate:
        return read_volume(_decompressed(header, separate), voxels, affine, stored, mask)


def read_header(stream: IO[bytes]) -> dict[str, str]:
    """The fields of the header; the stream is then after it. Raises ConfigError for a file of another format."""
    header: dict[str, str] = {}
    while LAST_KEY not in header:
        line = stream.readline(MAX_HEADER)
        field, equals, value = line.decode("latin-1").partition("=")
        if not equals or stream.tell() > MAX_HEADER:
            raise ConfigError(
                f"its header has no field {LAST_KEY}, which a MetaImage needs; replace it with an intact file"
            )
        header[field.strip()] = value.strip()
    return header


def voxel_file(file: str) -> str | None:
    """The file with the voxels of an `.mhd`; None if the file has them itself, or cannot be read."""
    try:
        with open(file, "rb") as stream:
            name = read_header(stream)[LAST_KEY]
        return None if name in LOCAL else _voxel_file(file, name)
    except (OSError, ConfigError):
        return None


def _voxel_file(file: str, name: str) -> str:
    """The path of the voxels. Raises ConfigError unless they are one file in the folder of `file`."""
    path = os.path.join(os.path.dirname(file), name)
    if os.path.basename(name) != name or not os.path.isfile(path):
        raise ConfigError(
            f"has its voxels in {name!r} ({LAST_KEY}), which is not a file in its folder; store the volume as one .mha "
            "file, or the .mhd and one file of voxels in one folder"
        )
    return path


def _is_true(header: Mapping[str, str], field: str) -> bool:
    return header.get(field, "False").lower() == "true"


def _numbers(header: Mapping[str, str], field: str, count: int) -> Array:
    """The `count` numbers of a field."""
    try:
        numbers = np.array(header.get(field, "").split(), float)
    except ValueError:
        numbers = np.array([])
    if len(numbers) != count:
        raise ConfigError(f"its header has {field} = {header.get(field, '')[:80]!r}; expected {count} numbers")
    return numbers


def _affine(header: Mapping[str, str], dims: int) -> Array:
    """The affine of the first three axes in RAS, in mm."""

    def numbers(fields: str, count: int, default: Array) -> Array:
        """The first of the fields that the header has, because programs use different names."""
        found = next((field for field in fields.split() if field in header), None)
        return default if found is None else _numbers(header, found, count)

    spacing = numbers("ElementSpacing ElementSize", dims, np.ones(dims))
    directions = numbers("TransformMatrix Rotation Orientation", dims * dims, np.eye(dims).ravel()).reshape(dims, dims)
    affine = np.eye(4)
    if dims > 2:
        affine[:3, :3] = directions[:3, :3].T * spacing[:3]  # a row for the direction of each axis
        affine[:3, 3] = numbers("Offset Position Origin", dims, np.zeros(dims))[:3]
    return LPS_TO_RAS @ affine


def _decompressed(header: Mapping[str, str], stream: IO[bytes]) -> IO[bytes]:
    """The stream of voxels, after the bytes that the header skips."""
    if header.get("BinaryData", "True").lower() != "true":
        raise ConfigError("has its voxels as text; store it with binary voxels")
    skipped = header.get("HeaderSize", "0")
    if not re.fullmatch(r"\d+", skipped):
        raise ConfigError(f"its header has HeaderSize = {skipped[:20]!r}; expected the bytes before the voxels")
    stream.seek(int(skipped), io.SEEK_CUR)
    return io.BufferedReader(_Inflated(stream)) if _is_true(header, "CompressedData") else stream


class _Inflated(io.RawIOBase):
    """A stream that is decompressed by zlib while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._inflate = stream, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._stream.read(io.DEFAULT_BUFFER_SIZE)
            if not compressed:
                break
            content = self._inflate.decompress(compressed, len(buffer))
        buffer[: len(content)] = content
        return len(content)
