"""MONAI transforms that resize as raysim does: linear interpolation, with averaging along axes that become coarser.

An exported MONAI bundle contains this file, with `raysim.data.resize` as `scripts.resize`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from raysim.data.resize import resize_image

KEY = "space_before_resizing"  # in the meta data of an image


def resize(image: Any, space: Sequence[int]) -> Any:
    """The image (C, *space) with the first spatial axes resized to `space`; further axes are slices."""
    array = np.asarray(image, np.float32)
    slices = array.reshape(*array.shape[: 1 + len(space)], -1)
    resized = resize_image(np.moveaxis(slices, -1, 0), space)
    return torch.from_numpy(np.moveaxis(resized, 0, -1).reshape(len(array), *space, *array.shape[1 + len(space) :]))


class ResizeAveragedd(MapTransform):
    """Resizes images (C, *space) to `spatial_size`. If an image has more axes than `spatial_size`, these are kept."""

    def __init__(self, keys: Any, spatial_size: Sequence[int]) -> None:
        super().__init__(keys)
        self.spatial_size = tuple(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            meta = {**image.meta, KEY: tuple(image.shape[1 : 1 + len(self.spatial_size)])}
            resized = resize(image, self.spatial_size)
            found[key] = MetaTensor(resized, meta=meta, applied_operations=image.applied_operations)
        return found


class RestoreSized(MapTransform):
    """Resizes predictions (K, *space) to the size that the image `orig_key` had before `ResizeAveragedd`."""

    def __init__(self, keys: Any, orig_key: str) -> None:
        super().__init__(keys)
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = MetaTensor(resize(found[key], found[self.orig_key].meta[KEY]))
        return found
