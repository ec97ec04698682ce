"""Scaling of the intensities of an image (C, *space), by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Intensity = Literal["zscore", "zscore_nonzero", "minmax", "percentile", "window", "ct", "unit", "none"]


def zscore(image: Array) -> Array:
    """Each channel of (C, *space) with mean 0 and standard deviation 1; a constant channel is 0.

    In numpy, because the sums of MONAI's NormalizeIntensity depend on the number of threads.
    """
    space = tuple(range(1, image.ndim))
    mean, deviation = image.mean(space, np.float64, keepdims=True), image.std(space, np.float64, keepdims=True)
    scaled: Array = (image - mean) / np.where(deviation > 0, deviation, 1)
    return scaled


def _zscore_nonzero(image: Array) -> Array:
    """The `zscore` of the values that are not 0 in each channel; 0 stays 0."""
    scaled: Array = np.zeros(image.shape, np.float32)
    for number, values in enumerate(image):
        inside = values != 0
        if inside.any():
            scaled[number, inside] = zscore(values[inside][None])[0]
    return scaled


def _minmax(image: Array) -> Any:
    from monai.transforms.intensity.array import ScaleIntensity

    return ScaleIntensity(0, 1, channel_wise=True)(image)


def _percentile(image: Array) -> Any:
    from monai.transforms.intensity.array import ScaleIntensityRangePercentiles

    return ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True, channel_wise=True)(image)


INTENSITY_SCALING: dict[Intensity, Callable[[Any], Any]] = {
    "zscore": zscore,
    "zscore_nonzero": _zscore_nonzero,
    "minmax": _minmax,
    "percentile": _percentile,
    "window": lambda image: image,
    "ct": lambda image: image,
    "unit": lambda image: image / 255,
    "none": lambda image: image,
}
