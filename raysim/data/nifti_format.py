"""Decodes NIfTI volumes: array, orientation and spacing, by the rules of the NIfTI standard."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_files import PARTNERS
from raysim.data.image_formats import Array, Image, grid_distance
from raysim.data.voxel_stream import StoredVoxels, check_affine, read_volume

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the code in `xyzt_units`: unknown, metre, mm, micrometre
UNIT_NAMES = {1: "metres", 3: "micrometres"}
MAX_OFFSET = 2**24  # bytes of the header and its extensions
MAX_DISAGREEMENT = 0.5  # voxels between two positions in one header; a smaller difference is not noted


def decode_nifti(file: str, stored: int, mask: bool) -> Image:
    """The volume with its axes reordered and flipped to right, anterior, superior, and its affine in mm.

    The affine is the sform if it has a code, else the qform if it has a code, else that of the voxel sizes `pixdim`.
    The values are float32; a mask of integers keeps its data type. `file` is a single file, or the header `.hdr` or the
    voxels `.img` of a pair. Raises ConfigError for a volume that cannot be used, and for one that takes more memory
    than a file of `stored` bytes may take.
    """
    import nibabel  # not at the top: tables are read without it

    if file.lower().endswith((".hdr", ".img")):
        file = _pair_header(file)
    check_header(file)
    volume: Any = nibabel.load(file)
    if not isinstance(volume, nibabel.Nifti1Pair):
        raise ConfigError(
            "is an Analyze volume, which does not store its orientation; convert it to NIfTI with the orientation of "
            "the scanner"
        )
    header, affine = volume.header, _affine_in_mm(volume)
    if header.get_data_dtype().kind not in "iufb":
        raise ConfigError(f"its data type is {_type_name(header)}; expected one real number per voxel")
    shape = (*volume.shape[:3], *(size for size in volume.shape[3:] if size != 1))
    if len(shape) not in (3, 4):
        raise ConfigError(f"has {len(shape) - (len(shape) > 3)} spatial axes; a volume must have three")
    proxy: Any = volume.dataobj
    voxels = StoredVoxels(proxy.dtype, shape, 3 if len(shape) == 4 else None, proxy.slope, proxy.inter)
    with _open(str(volume.file_map["image"].filename)) as stream:
        stream.seek(proxy.offset)
        return read_volume(stream, voxels, affine, stored, mask, tuple(_header_notes(header, shape[:3])))


def _pair_header(file: str) -> str:
    """The header of a pair. Raises ConfigError if one of its files is absent."""
    stem, suffix = os.path.splitext(file)
    if suffix not in PARTNERS:
        raise ConfigError(
            f"is one file of a pair and has the suffix {suffix}; rename both files: .hdr and .img, or .HDR and .IMG"
        )
    other = stem + PARTNERS[suffix]
    if not os.path.isfile(other):
        raise ConfigError(f"is one file of a pair, and {os.path.basename(other)} is not beside it; add that file")
    return file if suffix.lower() == ".hdr" else other


def check_header(file: str) -> None:
    """Raises ConfigError if the header says that the voxels begin after more than MAX_OFFSET bytes.

    nibabel reads everything before the voxels when it opens a file: 0.4 MB may decompress to 800 MB.
    """
    import nibabel

    with _open(file) as stream:
        head = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    second = nibabel.Nifti2Header.sizeof_hdr in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    kind: Any = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind(head[: kind.sizeof_hdr], check=False)
    if not (offset := float(header["vox_offset"])) <= MAX_OFFSET:
        raise ConfigError(f"its header declares {offset:g} bytes before the voxels; at most {MAX_OFFSET} are supported")


def _open(file: str) -> IO[bytes]:
    """The file, decompressed if its content is compressed; the name is not used."""
    with open(file, "rb") as stream:
        is_compressed = stream.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(file)) if is_compressed else open(file, "rb")


def _affine_in_mm(volume: Any) -> Array:
    """The affine of the volume. Raises ConfigError for an unknown unit, and for a singular affine."""
    unit = int(volume.header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise ConfigError(
            f"its header has the unit of length {unit} (xyzt_units), which does not exist; expected 1 (metre), "
            "2 (mm) or 3 (micrometre)"
        )
    affine = np.asarray(volume.affine, np.float64).copy()
    affine[:3] *= MM_PER_UNIT[unit]
    check_affine(affine)
    return affine


def _header_notes(header: Any, shape: tuple[int, ...]) -> Iterator[str]:
    unit = int(header["xyzt_units"]) & 7
    if unit in UNIT_NAMES:
        yield f"its unit of length is {UNIT_NAMES[unit]}, which are converted to mm"
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not sform_code and not qform_code:
        yield "it has neither an sform nor a qform with a code; only its voxel sizes are known, not its orientation"
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if sform_code and not np.allclose(np.linalg.norm(sform[:3, :3], axis=0), sizes, rtol=0.01):
        yield "its sform and its voxel sizes (pixdim) differ; the sform has a code and is used"
    elif sform_code and qform_code and _distance(sform, qform, shape) > MAX_DISAGREEMENT:
        yield "its sform and its qform differ; both have a code, and the sform is used"


def _distance(sform: Array, qform: Array, shape: tuple[int, ...]) -> float:
    grids = [Image(np.broadcast_to(np.float32(0), (1, *shape)), affine) for affine in (sform, qform)]
    return grid_distance(*grids)


def _type_name(header: Any) -> str:
    kind = header.get_data_dtype()
    return "RGB" if kind.fields else str(kind)
