"""Resamples volumes to another spacing or to the grid of another volume, by MONAI."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from raysim.data.image_formats import Image


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
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    target = (*spacing, *image.spacing[len(spacing) :])
    volume = MetaTensor(torch.from_numpy(image.array), affine=torch.from_numpy(image.affine))
    volume = cast("MetaTensor", Spacing(target, mode=mode, dtype=np.float32)(volume))
    return Image(volume.numpy(), volume.affine.numpy())
