"""Decodes NRRD volumes (`.nrrd`): pynrrd reads the header, and the voxels are read slice by slice."""

from __future__ import annotations

import bz2
import gzip
import re
from collections.abc import Mapping
from typing import IO, Any, cast

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, Dtype, Image
from raysim.data.voxel_stream import LPS_TO_RAS, StoredVoxels, read_volume

C_TYPES = {  # names of the format without `signed` and `int`; SIZED_TYPE matches the other names, such as uint16_t
    "char": "i1",
    "uchar": "u1",
    "unsigned char": "u1",
    "short": "i2",
    "ushort": "u2",
    "unsigned short": "u2",
    "": "i4",
    "u": "u4",
    "unsigned": "u4",
    "longlong": "i8",
    "long long": "i8",
    "ulonglong": "u8",
    "unsigned long long": "u8",
    "float": "f4",
    "double": "f8",
}
SIZED_TYPE = re.compile(r"(u?)int(8|16|32|64)(?:_t)?")
TO_RAS = {  # of the spaces with an orientation
    **dict.fromkeys(("right-anterior-superior", "RAS"), np.eye(4)),
    **dict.fromkeys(("left-anterior-superior", "LAS"), np.diag([-1.0, 1.0, 1.0, 1.0])),
    **dict.fromkeys(("left-posterior-superior", "LPS"), LPS_TO_RAS),
}
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "microns": 0.001, "millimeters": 1.0}
SPATIAL_KINDS = ("domain", "space")
NO_ORIENTATION = "its header has no orientation; its axes are read as left, posterior, superior, as in ITK"


def decode_nrrd(file: str, stored: int, mask: bool) -> Image:
    """The volume in the orientation right, anterior, superior; an axis that is not spatial has the channels.

    Raises ConfigError for a volume that cannot be used, and for one that takes more memory than a file of `stored`
    bytes may take.
    """
    import nrrd  # not at the top: few files need it

    with open(file, "rb") as stream:
        header: Mapping[str, Any] = nrrd.read_header(stream)
        _check_layout(header)
        affine, channel_axis = _geometry(header)
        shape = tuple(int(size) for size in header["sizes"])
        voxels = StoredVoxels(_data_type(header), shape, channel_axis)
        notes = () if header.get("space") in TO_RAS else (NO_ORIENTATION,)
        return read_volume(_decompressed(header, stream), voxels, affine, stored, mask, notes)


def _check_layout(header: Mapping[str, Any]) -> None:
    """Raises ConfigError for a header that lacks a field, and for voxels that do not follow the header directly."""
    for field in ("dimension", "type", "encoding", "sizes"):
        if field not in header:
            raise ConfigError(f"its header has no field {field}; replace it with an intact file")
    if header["dimension"] != (count := len(header["sizes"])):
        raise ConfigError(
            f"its header has {count} sizes for the dimension {header['dimension']}; replace it with an intact file"
        )
    if "data file" in header or "datafile" in header:
        raise ConfigError("has its voxels in another file; store header and voxels in one .nrrd file")
    if any(header.get(field, 0) for field in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise ConfigError("has bytes or lines that are skipped before the voxels; store it without them")


def _data_type(header: Mapping[str, Any]) -> Dtype:
    name = header["type"]
    if sized := SIZED_TYPE.fullmatch(name):
        code: str | None = f"{'u' if sized[1] else 'i'}{int(sized[2]) // 8}"
    else:
        code = C_TYPES.get(name.removeprefix("signed ").removesuffix("int").strip())
    if code is None:
        raise ConfigError(f"its data type is {name}; expected one real number per voxel")
    if code[1] != "1" and header.get("endian") not in ("little", "big"):
        raise ConfigError(f"its header has endian {header.get('endian')!r}; expected little or big")
    return np.dtype(code).newbyteorder(">" if header.get("endian") == "big" else "<")


def _decompressed(header: Mapping[str, Any], stream: IO[bytes]) -> IO[bytes]:
    encoding = header["encoding"].lower()
    if encoding == "raw":
        return stream
    if encoding in ("gzip", "gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if encoding in ("bzip2", "bz2"):
        return bz2.BZ2File(stream)
    raise ConfigError(f"its encoding is {encoding}; store it with the encoding raw, gzip or bzip2")


def _geometry(header: Mapping[str, Any]) -> tuple[Array, int | None]:
    """The affine from the spatial axes of the file to RAS in mm, and the axis of the channels, if there is one."""
    count = len(header["sizes"])
    if "space directions" in header:
        vectors = np.array([np.full(3, np.nan) if v is None else v for v in header["space directions"]], float)
        is_spatial = ~np.isnan(vectors).all(axis=1)
    else:
        spacings = np.asarray(header.get("spacings", [np.nan] * count), float)
        kinds = [kind.lower() in SPATIAL_KINDS for kind in header.get("kinds", [])]
        is_spatial = np.array(kinds if len(kinds) == count and sum(kinds) == 3 else [True] * count)
        vectors = np.zeros((count, 3))
        if is_spatial.sum() == 3:
            vectors[is_spatial] = np.diag(np.nan_to_num(spacings[is_spatial], nan=1.0))
    others = np.flatnonzero(~is_spatial).tolist()
    if is_spatial.sum() != 3 or vectors.shape[1] != 3 or len(others) > 1 or (others and 0 < others[0] < count - 1):
        raise ConfigError(
            f"has {int(is_spatial.sum())} spatial axes of {count}; a volume needs three, and at most one axis of "
            "channels before or after them"
        )
    affine = np.eye(4)
    affine[:3, :3] = vectors[is_spatial].T
    affine[:3, 3] = header.get("space origin", np.zeros(3))
    affine[:3] *= _mm_per_unit(header)
    return TO_RAS.get(header.get("space", ""), LPS_TO_RAS) @ affine, others[0] if others else None


def _mm_per_unit(header: Mapping[str, Any]) -> float:
    units = {str(unit).lower() for unit in header.get("space units", ["mm"])}
    if len(units) != 1 or not units <= MM_PER_UNIT.keys():
        raise ConfigError(f"its space units are {sorted(units)}; expected one of {', '.join(MM_PER_UNIT)} for all axes")
    return MM_PER_UNIT[units.pop()]
