"""Prepares one case: reads image and label, brings them to one spacing, size and scale, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.croppad.array import ResizeWithPadOrCrop
from monai.transforms.intensity.array import ScaleIntensity, ScaleIntensityRangePercentiles
from monai.transforms.spatial.array import Resize, Spacing

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.image_pixels import MOST
from raysim.data.image_reading import Image, read
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
Intensity = Literal["zscore", "minmax", "percentile", "unit", "none"]


def zscore(image: Array) -> Array:
    """Each channel of (C, *space) with mean 0 and deviation 1; a constant one is 0.

    In numpy, as the sums of MONAI's NormalizeIntensity depend on the number of threads.
    """
    space = tuple(range(1, image.ndim))
    mean, deviation = image.mean(space, np.float64, keepdims=True), image.std(space, np.float64, keepdims=True)
    scaled: Array = (image - mean) / np.where(deviation > 0, deviation, 1)
    return scaled


SCALES: dict[Intensity, Callable[[Any], Any]] = {
    "zscore": zscore,
    "minmax": ScaleIntensity(0, 1, channel_wise=True),
    "percentile": ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True, channel_wise=True),
    "unit": lambda image: image / 255,
    "none": lambda image: image,
}


@dataclass(frozen=True)
class Case:
    """The examples of one case: one, or one for each slice.

    inputs (n, C, *space) float32; labels class indices (n, 1, *space) of masks, (n, 1) of classes, or None; spacing
    in mm, of slices with the distance between them as a last number; lost is the fraction of labelled voxels that
    cropping cut off; erased says that interpolation left none of them.
    """

    inputs: Array
    labels: Array | None
    spacing: tuple[float, ...]
    lost: float
    erased: bool


class UnknownMaskValues(ConfigError):
    """A label file holds values that are no class."""

    def __init__(self, path: str, values: Sequence[float], classes: Mapping[str, int]) -> None:
        shown = ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
        super().__init__(
            f"{path}: has the values {shown}, which are no class; the classes are {list(classes.values())}"
        )
        self.values, self.classes = values, classes


@dataclass(frozen=True)
class Preparation:
    """How cases are prepared; `classes` are the numbers in a label file by name, background first.

    They are None where no label is a file: then it is the index of the case's class.
    """

    classes: Mapping[str, int] | None
    intensity: Intensity
    fit: Literal["resize", "pad"]
    size: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    slices: bool
    channels: int | None

    def __call__(self, image: str, label: str | int | None) -> Case:
        """The case of an image and its label, a file or a class. Raises ConfigError naming the file that is wrong."""
        scan = read(image)
        self._check(image, scan)
        mask = self._mask(label, scan, image) if isinstance(label, str) else None
        marked = mask is not None and bool(mask.array.any())
        if self.spacing is not None:
            scan = _resampled(scan, self.spacing, "bilinear")
            mask = None if mask is None else _resampled(mask, self.spacing, "nearest")
        scaled = np.asarray(SCALES[self.intensity](scan.array), np.float32)
        inputs = self._fitted(self._examples(scaled), "linear")
        if mask is None:
            index = None if label is None else np.full((len(inputs), 1), label, np.uint8)
            return Case(inputs, index, self._distances(scan), 0.0, False)
        whole = self._examples(mask.array)
        labels = self._fitted(whole, "nearest").astype(np.uint8)
        lost = 1 - (labels > 0).sum() / max(1, (whole > 0).sum()) if self.fit == "pad" and whole.any() else 0.0
        erased = marked and not (whole if self.fit == "pad" else labels).any()
        return Case(inputs, labels, self._distances(scan), float(lost), erased)

    def _check(self, path: str, scan: Image) -> None:
        if self.channels is not None and len(scan.array) != self.channels:
            raise ConfigError(
                f"{path}: has {pluralize(len(scan.array), 'channel')}, but task.data.channels={self.channels}"
            )
        grown = scan.array[0].size * np.prod(
            [old / new for old, new in zip(scan.spacing, self.spacing or (), strict=False)]
        )
        if grown > MOST:  # a slip in task.data.spacing
            raise ConfigError(
                f"{path}: at task.data.spacing={list(self.spacing or ())} it has {grown:.0e} voxels; set a larger one"
            )
        if self.intensity == "unit" and (scan.array.min() < 0 or scan.array.max() > 255):
            found = f"{scan.array.min():g} to {scan.array.max():g}"
            raise ConfigError(f"{path}: has values from {found}, but task.data.intensity=unit is for 0 to 255")

    def _mask(self, path: str, scan: Image, image: str) -> Image:
        """The label as class indices."""
        mask = read(path, mask=True)
        if mask.array.shape != (1, *scan.space):
            raise ConfigError(
                f"{path}: has the shape {mask.array.shape}, its image {image} {scan.array.shape}; "
                "a label needs one channel and the size of its image"
            )
        if not np.allclose(mask.affine, scan.affine, atol=0.1):
            raise ConfigError(f"{path}: lies in another place than its image {image}; resample it to the image")
        return Image(self._indices(path, mask.array), mask.affine)

    def _indices(self, path: str, mask: Array) -> Array:
        """The class of each voxel."""
        classes = self.classes or {}
        stray = np.setdiff1d(mask, list(classes.values()))
        if len(stray):
            raise UnknownMaskValues(path, stray.tolist(), classes)
        indices = np.zeros(mask.shape, np.float32)
        for index, value in enumerate(classes.values()):
            indices[mask == value] = index
        return indices

    def _examples(self, array: Array) -> Array:
        """(C, *space) as (n, C, *space): one, or the axial slices."""
        return np.moveaxis(array, -1, 0) if self.slices else array[None]

    def _fitted(self, examples: Array, between: Literal["linear", "nearest"]) -> Array:
        """Examples (n, C, *space) in the wanted size."""
        space = examples.shape[2:]
        if self.size is None or space == self.size:
            return np.ascontiguousarray(examples)
        if self.fit == "resize" and between == "linear":
            return resize_image(examples, self.size)
        flat = torch.from_numpy(np.ascontiguousarray(examples)).flatten(0, 1)
        if self.fit == "resize":
            changed = Resize(self.size, mode="nearest-exact")(flat)
        else:
            changed = ResizeWithPadOrCrop(self.size, value=float(flat.min()) if between == "linear" else 0.0)(flat)
        fitted: Array = changed.numpy().reshape(*examples.shape[:2], *self.size)
        return fitted

    def _distances(self, scan: Image) -> tuple[float, ...]:
        """mm between voxels of an example, and then between slices."""
        space = scan.space[:2] if self.slices else scan.space
        size = self.size if self.size is not None and self.fit == "resize" else space
        inside = [mm * old / new for mm, old, new in zip(scan.spacing, space, size, strict=False)]
        return (*inside, *scan.spacing[len(space) :])


def _resampled(image: Image, spacing: tuple[float, ...], mode: str) -> Image:
    """A volume with these mm between voxels; axes that `spacing` does not name stay as they are."""
    whole = (*spacing, *image.spacing[len(spacing) :])
    volume = MetaTensor(torch.from_numpy(image.array), affine=torch.from_numpy(image.affine))
    volume = cast(MetaTensor, Spacing(whole, mode=mode, dtype=np.float32)(volume))
    return Image(volume.numpy(), volume.affine.numpy())
