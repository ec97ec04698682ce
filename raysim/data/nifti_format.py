"""Decodes NIfTI volumes: array, orientation and spacing, by the rules of the NIfTI standard."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, Image, decoded_type, grid_distance
from raysim.data.memory_limit import check_memory

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the code in `xyzt_units`: unknown, metre, mm, micrometre
UNIT_NAMES = {1: "metres", 3: "micrometres"}
MAX_OFFSET = 2**24  # bytes of the header and its extensions
MAX_SHEAR = 0.02  # cosine of the angle between two axes of the grid; about 1 degree from perpendicular
MAX_DISAGREEMENT = 0.5  # voxels between two positions in one header; a smaller difference is not noted


def decode_nifti(file: str, stored: int, mask: bool) -> Image:
    """The volume with its axes reordered and flipped to right, anterior, superior, and its affine in mm.

    The affine is the sform if it has a code, else the qform if it has a code, else that of the voxel sizes `pixdim`.
    The values are float32; a mask of integers keeps its data type. Raises ConfigError for a volume that
    cannot be used, and for one that takes more memory than a file of `stored` bytes may take.
    """
    import nibabel  # not at the top: tables are read without it

    check_header(file)
    volume: Any = nibabel.load(file)
    header, affine = volume.header, _affine_in_mm(volume)
    if header.get_data_dtype().kind not in "iufb":
        raise ConfigError(f"its data type is {_type_name(header)}; expected one real number per voxel")
    shape = (*volume.shape[:3], *(size for size in volume.shape[3:] if size != 1))
    if len(shape) not in (3, 4):
        raise ConfigError(f"has {len(shape) - (len(shape) > 3)} spatial axes; a volume must have three")
    notes = (*_header_notes(header, shape[:3]), *_shear_notes(affine))
    to_ras = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(to_ras, shape[:3])
    array = _read_voxels(file, stored, volume.dataobj, shape, to_ras[:, 1], mask)
    array = array.transpose(*np.argsort(to_ras[:, 0]), *range(3, array.ndim))
    return Image(np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None], affine, notes)


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


def _read_voxels(file: str, stored: int, proxy: Any, shape: tuple[int, ...], signs: Array, mask: bool) -> Array:
    """The voxels with the shape `shape`; the axes whose sign in `signs` is negative are reversed.

    The file is read slice by slice, because nibabel would copy the whole volume in the stored type, and as float64 if
    the header has a scale.
    """
    from nibabel.volumeutils import apply_read_scaling

    slope, inter = np.asanyarray(proxy.slope), np.asanyarray(proxy.inter)
    dtype = decoded_type(proxy.dtype if (slope, inter) == (1, 0) else slope.dtype, mask)
    per_slice, per_voxel = math.prod(shape[:-1]), dtype.itemsize * (2 if mask else 1)  # sorting copies a mask
    check_memory(math.prod(shape) * per_voxel + per_slice * 24, stored)
    array = np.empty(shape, dtype, order="F")
    in_file = array[tuple(slice(None, None, int(sign)) for sign in signs)]
    size = per_slice * proxy.dtype.itemsize
    with _open(file) as stream, np.errstate(over="ignore"):  # infinite values are refused
        stream.seek(proxy.offset)
        for number in range(shape[-1]):
            if len(content := stream.read(size)) < size:
                raise ConfigError(f"ends in slice {number + 1} of {shape[-1]}; replace it with an intact file")
            values = np.frombuffer(content, proxy.dtype).reshape(shape[:-1], order="F")
            in_file[..., number] = apply_read_scaling(values, slope, inter)
    return array


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
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    volume_per_voxel = abs(np.linalg.det(affine[:3, :3] / np.where(sizes > 0, sizes, 1)))
    if not np.isfinite(affine).all() or not sizes.all() or volume_per_voxel < 1e-3:
        raise ConfigError(
            f"its affine {np.round(affine[:3], 4).tolist()} does not give each voxel a position; correct the sform or "
            "the qform in its header"
        )
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


def _shear_notes(affine: Array) -> Iterator[str]:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > MAX_SHEAR:
        yield (
            f"its axes are up to {np.degrees(np.arcsin(min(1.0, cosine))):.0f} degrees from perpendicular; distances "
            "in mm (hd95, asd, surface_dice) assume perpendicular axes: resample it for exact ones"
        )


def _distance(sform: Array, qform: Array, shape: tuple[int, ...]) -> float:
    grids = [Image(np.broadcast_to(np.float32(0), (1, *shape)), affine) for affine in (sform, qform)]
    return grid_distance(*grids)


def _type_name(header: Any) -> str:
    kind = header.get_data_dtype()
    return "RGB" if kind.fields else str(kind)
