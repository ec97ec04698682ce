"""The preprocessing of one case: reads image and label, resamples, scales intensities and fits the size.

Imports torch and MONAI where they are used: they are slow, tables are checked without them, and client actors read
prepared cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.image_formats import MAX_VOXELS, Colour, Image
from raysim.data.image_reader import on_grid_of, position_problem, read_image
from raysim.data.intensity import INTENSITY_SCALING, Intensity
from raysim.data.label_columns import Label, label_rows
from raysim.data.mask_colours import classes_from_colours, palette_entries
from raysim.data.mask_values import IGNORED, MaskClasses, class_indices
from raysim.data.nonzero_box import crop, nonzero_box
from raysim.data.resample import resample_to, resample_volume
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
LUMA = (0.299, 0.587, 0.114)  # grey from red, green and blue; equal channels keep their value


@dataclass(frozen=True)
class Case:
    """The n examples of one case: one, or one per slice.

    inputs   (n, C, *space) float32
    labels   (n, 1, *space) class indices from a mask, or (n, L), as from `label_rows`; None for an unlabelled case
    spacing  mm between voxels; for slices followed by the distance between them
    lost     fraction of labelled voxels that cropping removed
    erased   whether resampling removed all labelled voxels
    foreground  mask value of the class whose value is None; 0 without one
    notes    decisions of the image reader, one phrase per line
    mask_notes  decisions of the mask reader
    palette  the `palette_entries` of the mask of a picture, (n, 5)
    """

    inputs: Array
    labels: Array | None
    spacing: tuple[float, ...]
    lost: float
    erased: bool
    notes: str
    mask_notes: str
    palette: Array
    foreground: int = 0


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case as read, before they are resampled and scaled.

    image  with the configured number of channels
    mask   with class indices; None without a mask
    palette, foreground  as in Case
    """

    image: Image
    mask: Image | None
    palette: Array
    foreground: int = 0


@dataclass(frozen=True)
class CasePreparation:
    """The preprocessing of cases; `classes` are the values in label files by class name, background first.

    `clip` limits values before they are scaled. `scale` has the value that becomes 0 and the difference that becomes 1,
    if they are equal for all images. `further` maps the first image of a case to the other ones, None for a missing
    one; with `align` they are resampled to the first.

    `classes` is None if labels are class indices and not files. With `colours`, masks are pictures that have the colour
    of each class, in the order of `classes`. `ignore` is the mask value that is left out.
    """

    classes: MaskClasses | None
    intensity: Intensity
    fit: Literal["resize", "pad"]
    size: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    slices: bool
    channels: int | None
    colours: Mapping[str, Colour] | None = None
    ignore: int | None = None
    crop_nonzero: bool = False
    clip: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    align: bool = False
    further: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def read(self, image: str, label: str | Label | None) -> CaseFiles:
        """The files of a case; the label is a mask file or that of the case. Raises ConfigError that names the file."""
        scan = self._convert_channels(self.read_channels(image))
        self._check_image(image, scan)
        if not isinstance(label, str):
            return CaseFiles(scan, None, self._palette(None))
        mask = self._read_mask(label, scan, image)
        indices, foreground = self._class_indices(label, mask.array)
        return CaseFiles(scan, replace(mask, array=indices), self._palette(mask), foreground)

    def read_channels(self, path: str) -> Image:
        """The image with the channels of all files of the case, on the grid of this file; 0 for a missing file."""
        scan = read_image(path)
        others = [self._read_further(other, path, scan) for other in self.further.get(path, ())]
        if not others:
            return scan
        notes = tuple(dict.fromkeys(note for each in (scan, *others) for note in each.notes))
        return replace(scan, array=np.concatenate([scan.array, *(other.array for other in others)]), notes=notes)

    def _read_further(self, path: str | None, first: str, scan: Image) -> Image:
        if path is None:
            return replace(scan, array=np.zeros((1, *scan.space), np.float32), notes=())
        other = read_image(path)
        same_axes = len(other.space) == len(scan.space)
        if same_axes and other.space == scan.space and position_problem(scan, other) is None:
            return other
        volumes = len(other.space) == 3 and same_axes
        if self.align and volumes:
            return resample_to(other, scan)
        cure = "set task.data.align=true to resample it" if volumes else "the images of a case need one size"
        raise ConfigError(
            f"{path}: its grid {other.space} differs in size or position from that of the first image of the case, "
            f"{first} {scan.space}; {cure}"
        )

    def __call__(self, image: str, label: str | Label | None) -> Case:
        """The prepared case; the label is a mask file or a `Label`. Raises ConfigError naming the invalid file."""
        files = self.read(image, label)
        scan, mask, palette, foreground = files.image, files.mask, files.palette, files.foreground
        notes = "\n".join(scan.notes), "\n".join(mask.notes if mask else ())
        has_foreground = mask is not None and bool(self.is_foreground(mask.array).any())
        if self.crop_nonzero:
            box = self.kept_box(scan)
            scan, mask = crop(scan, box), None if mask is None else crop(mask, box)
        if self.spacing is not None:
            scan = resample_volume(scan, self.spacing, "bilinear")
            mask = None if mask is None else resample_volume(mask, self.spacing, "nearest")
        scaled = self._scale_intensity(scan.array)
        inputs = self._fit_size(self._to_examples(scaled), "linear")
        if mask is None:
            labels = (
                None if label is None or isinstance(label, str) else np.repeat(label_rows([label]), len(inputs), axis=0)
            )
            return Case(inputs, labels, self._example_spacing(scan), 0.0, False, *notes, palette)
        original = self._to_examples(mask.array)
        labels = self._fit_size(original, "nearest").astype(np.uint8)
        before, after = (self.is_foreground(array) for array in (original, labels))
        lost = 1 - after.sum() / max(1, before.sum()) if self.fit == "pad" and before.any() else 0.0
        erased = has_foreground and not (before if self.fit == "pad" else after).any()
        spacing = self._example_spacing(scan)
        return Case(inputs, labels, spacing, float(lost), bool(erased), *notes, palette, foreground)

    def kept_box(self, image: Image) -> tuple[slice, ...]:
        """The part of an image that is prepared: all of it, or the smallest box with all values other than 0."""
        return nonzero_box(image.array) if self.crop_nonzero else (slice(None),) * len(image.space)

    def _scale_intensity(self, image: Array) -> Array:
        if self.clip is not None:
            image = np.clip(image, *self.clip)
        if self.scale is not None:
            return np.asarray((image - self.scale[0]) / self.scale[1], np.float32)
        return np.asarray(INTENSITY_SCALING[self.intensity](image), np.float32)

    def _convert_channels(self, scan: Image) -> Image:
        """A picture with `channels` channels: grey is repeated, and colour becomes grey (ITU-R 601 luma)."""
        found = len(scan.array)
        if len(scan.space) == 3 or self.channels in (None, found):
            return scan
        if self.channels == 3:
            return replace(scan, array=np.repeat(scan.array, 3, axis=0))
        if self.channels == 1:
            grey = np.tensordot(LUMA, scan.array.astype(np.float64), 1)
            return replace(scan, array=grey.astype(np.float32)[None])
        return scan

    def _palette(self, mask: Image | None) -> Array:
        no_values = mask is None or self.colours is not None or mask.array.ndim > 3
        return np.zeros((0, 5), np.int64) if no_values or mask is None else palette_entries(mask.array, mask.palette)

    def _check_image(self, path: str, scan: Image) -> None:
        if self.channels is not None and len(scan.array) != self.channels:
            raise ConfigError(
                f"{path}: has {pluralize(len(scan.array), 'channel')}, but task.data.channels={self.channels}; set the "
                "number of channels of the files, or remove the key"
            )
        voxels = scan.array[0].size * np.prod(
            [old / new for old, new in zip(scan.spacing, self.spacing or (), strict=False)]
        )
        if voxels > MAX_VOXELS:  # probably a typo in task.data.spacing
            raise ConfigError(
                f"{path}: task.data.spacing={list(self.spacing or ())} results in {voxels:.0e} voxels; "
                "set a larger spacing"
            )
        if self.intensity == "unit" and (scan.array.min() < 0 or scan.array.max() > 255):
            found = f"{scan.array.min():g} to {scan.array.max():g}"
            raise ConfigError(
                f"{path}: has values from {found}, but task.data.intensity=unit expects 0 to 255; use another intensity"
            )

    def _read_mask(self, path: str, scan: Image, image: str) -> Image:
        """The mask with its values, or its colours. Raises ConfigError if it does not fit its image."""
        mask = on_grid_of(scan, read_image(path, mask=True, colours=self.colours is not None), path)
        if mask.array.shape != (3 if self.colours else 1, *scan.space):
            raise ConfigError(
                f"{path}: has the shape {mask.array.shape}, but its image {image} has {scan.array.shape}; "
                "a mask needs one channel and the size of its image"
            )
        if difference := position_problem(scan, mask):
            raise ConfigError(
                f"{path}: its position differs from that of its image {image} {difference}; resample it to the image"
            )
        return mask

    def _class_indices(self, path: str, mask: Array) -> tuple[Array, int]:
        """The result of `class_indices`, by value or by colour. Raises ConfigError for a value that is not a class."""
        if self.colours is None:
            return class_indices(path, mask, self.classes or {}, self.ignore)
        try:
            return classes_from_colours(mask, self.colours), 0
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def is_foreground(self, labels: Array) -> Any:
        """Whether each voxel of class indices is of a class other than the background."""
        return (labels > 0) & ((labels != IGNORED) | (self.ignore is None))

    def _to_examples(self, array: Array) -> Array:
        """(C, *space) as examples (n, C, *space): one, or the axial slices."""
        return np.moveaxis(array, -1, 0) if self.slices else array[None]

    def _fit_size(self, examples: Array, mode: Literal["linear", "nearest"]) -> Array:
        """Examples (n, C, *space) resized, or padded and cropped, to the configured size."""
        space = examples.shape[2:]
        if self.size is None or space == self.size:
            return np.ascontiguousarray(examples)
        if self.fit == "resize" and mode == "linear":
            return resize_image(examples, self.size)
        import torch
        from monai.transforms.croppad.array import ResizeWithPadOrCrop
        from monai.transforms.spatial.array import Resize

        flat = torch.from_numpy(np.ascontiguousarray(examples)).flatten(0, 1)
        if self.fit == "resize":
            resized = Resize(self.size, mode="nearest-exact")(flat)
        else:
            resized = ResizeWithPadOrCrop(self.size, value=float(flat.min()) if mode == "linear" else 0.0)(flat)
        fitted: Array = resized.numpy().reshape(*examples.shape[:2], *self.size)
        return fitted

    def _example_spacing(self, scan: Image) -> tuple[float, ...]:
        """mm between the voxels of an example, for slices followed by the distance between them."""
        space = scan.space[:2] if self.slices else scan.space
        size = self.size if self.size is not None and self.fit == "resize" else space
        in_example = [mm * old / new for mm, old, new in zip(scan.spacing, space, size, strict=False)]
        return (*in_example, *scan.spacing[len(space) :])
