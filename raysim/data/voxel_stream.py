"""Reads the voxels of a volume from a stream, slice by slice, in the orientation right, anterior, superior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, DamagedImageError, Dtype, Image, decoded_type
from raysim.data.memory_limit import check_memory

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from left, posterior, superior
MAX_SHEAR = 0.02  # cosine of the angle between two axes of the grid; about 1 degree from perpendicular


@dataclass(frozen=True)
class StoredVoxels:
    """How a file stores its voxels.

    shape         along each axis, the axis whose neighbours are adjacent in the file first
    channel_axis  the axis that is not spatial; None without one
    slope, inter  value = slope * stored + inter; numpy numbers, whose type is that of the result
    """

    dtype: Dtype
    shape: tuple[int, ...]
    channel_axis: int | None = None
    slope: Any = 1
    inter: Any = 0


def read_volume(
    stream: IO[bytes], voxels: StoredVoxels, affine: Array, stored: int, mask: bool, notes: tuple[str, ...] = ()
) -> Image:
    """The volume whose voxels begin at the position of `stream`; `affine` maps its axes in the file to RAS in mm.

    The values are float32; a mask of integers keeps its data type. Raises ConfigError for a volume that
    cannot be used, and for one that takes more memory than a file of `stored` bytes may take.
    """
    import nibabel  # not at the top: tables are read without it

    spatial = [axis for axis in range(len(voxels.shape)) if axis != voxels.channel_axis]
    if len(spatial) != 3:
        raise ConfigError(f"has {len(spatial)} spatial axes; a volume must have three")
    check_affine(affine)
    to_ras = nibabel.io_orientation(affine)
    in_ras = affine @ nibabel.orientations.inv_ornt_aff(to_ras, [voxels.shape[axis] for axis in spatial])
    signs = np.ones(len(voxels.shape), int)
    signs[spatial] = to_ras[:, 1]
    array = read_voxels(stream, voxels, stored, mask, tuple(signs.tolist()))
    axes = [spatial[axis] for axis in np.argsort(to_ras[:, 0])]
    turned = array.transpose(*([] if voxels.channel_axis is None else [voxels.channel_axis]), *axes)
    return Image(turned if turned.ndim == 4 else turned[None], in_ras, (*notes, *shear_notes(affine)))


def read_voxels(
    stream: IO[bytes], voxels: StoredVoxels, stored: int, mask: bool, signs: tuple[int, ...] | None = None
) -> Array:
    """The voxels with their shape; axes whose sign in `signs` is negative are reversed.

    Whole arrays in the stored type, and as float64 after a scale, would take several times the memory.
    """
    from nibabel.volumeutils import apply_read_scaling

    slope, inter = np.asanyarray(voxels.slope), np.asanyarray(voxels.inter)
    if voxels.dtype.kind not in "iufb":
        raise ConfigError(f"its data type is {voxels.dtype}; expected one real number per voxel")
    if not voxels.shape or not min(voxels.shape) > 0:
        raise ConfigError(f"its header declares the size {voxels.shape}; replace it with an intact file")
    dtype = decoded_type(voxels.dtype if (slope, inter) == (1, 0) else slope.dtype, mask)
    per_slice, per_voxel = math.prod(voxels.shape[:-1]), dtype.itemsize * (2 if mask else 1)  # sorting copies a mask
    check_memory(math.prod(voxels.shape) * per_voxel + per_slice * 24, stored)
    array = np.empty(voxels.shape, dtype, order="F")
    in_file = array[tuple(slice(None, None, sign) for sign in signs or [1] * array.ndim)]
    size = per_slice * voxels.dtype.itemsize
    with np.errstate(over="ignore"):  # infinite values are refused
        for number in range(voxels.shape[-1]):
            if len(content := stream.read(size)) < size:
                raise DamagedImageError(
                    f"ends in slice {number + 1} of {voxels.shape[-1]}; replace it with an intact file"
                )
            values = np.frombuffer(content, voxels.dtype).reshape(voxels.shape[:-1], order="F")
            in_file[..., number] = apply_read_scaling(values, slope, inter)
    return array


def turn_to_ras(array: Array, affine: Array) -> tuple[Array, Array]:
    """A view of (C, *space) with the spatial axes right, anterior, superior, and its affine."""
    import nibabel

    to_ras = nibabel.io_orientation(affine)
    in_ras: Array = affine @ nibabel.orientations.inv_ornt_aff(to_ras, array.shape[1:])
    turned = array[(slice(None), *(slice(None, None, int(sign)) for sign in to_ras[:, 1]))]
    return turned.transpose(0, *(int(axis) + 1 for axis in np.argsort(to_ras[:, 0]))), in_ras


def check_affine(affine: Array) -> None:
    """Raises ConfigError for an affine that is singular or not finite."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    volume_per_voxel = abs(np.linalg.det(affine[:3, :3] / np.where(sizes > 0, sizes, 1)))
    if not np.isfinite(affine).all() or not sizes.all() or volume_per_voxel < 1e-3:
        raise ConfigError(
            f"its affine {np.round(affine[:3], 4).tolist()} does not give each voxel a position; correct the "
            "directions and the spacing in its header"
        )


def shear_notes(affine: Array) -> tuple[str, ...]:
    """A note if the axes of the grid are not perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine <= MAX_SHEAR:
        return ()
    degrees = np.degrees(np.arcsin(min(1.0, cosine)))
    return (
        f"its axes are up to {degrees:.0f} degrees from perpendicular; distances in mm (hd95, asd, surface_dice) "
        "assume perpendicular axes: resample it for exact ones",
    )
