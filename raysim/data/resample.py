"""Resamples volumes to another spacing or to the grid of another volume, by MONAI."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raysim.data.image_formats import Array, Image

if TYPE_CHECKING:  # MONAI takes longer to import than torch
    from monai.data.meta_tensor import MetaTensor
    from torch import Tensor


def resample_to(image: Image, target: Image) -> Image:
    """The volume on the grid of `target`, interpolated linearly; outside, it has its values at the border."""
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample

    volume = MetaTensor(torch.from_numpy(np.ascontiguousarray(image.array)), affine=torch.from_numpy(image.affine))
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
    found = resample(volume, dst_affine=torch.from_numpy(target.affine), spatial_size=target.space)
    return replace(target, array=cast("MetaTensor", found).numpy(), notes=image.notes)


def resample_volume(image: Image, spacing: tuple[float, ...], mode: str) -> Image:
    """A volume resampled to `spacing`, mm between voxels; further axes keep their spacing."""
    import torch

    voxels = image.array if min(image.array.strides) >= 0 else image.array.copy()  # readers may return a flipped view
    volume = _resample(torch.from_numpy(voxels), image, spacing, mode)
    return Image(volume.numpy(), volume.affine.numpy())


def resampled_grid(image: Image, spacing: tuple[float, ...]) -> Image:
    """The grid of `resample_volume`; the values are 0."""
    import torch

    volume: Any = _resample(torch.zeros(1).expand(1, *image.space), image, spacing, "nearest", lazy=True)
    return empty_image(tuple(map(int, volume.peek_pending_shape())), np.asarray(volume.peek_pending_affine()))


def empty_image(space: tuple[int, ...], affine: Array) -> Image:
    """An image of zeros that takes no memory."""
    return Image(np.broadcast_to(np.float32(0), (1, *space)), affine)


def _resample(voxels: Tensor, image: Image, spacing: tuple[float, ...], mode: str, *, lazy: bool = False) -> MetaTensor:
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    target = (*spacing, *image.spacing[len(spacing) :])
    volume = MetaTensor(voxels, affine=torch.from_numpy(image.affine))
    return cast("MetaTensor", Spacing(target, mode=mode, dtype=np.float32)(volume, lazy=lazy))
