"""The keys under `task.data` of a segmentation: images, masks, and the values of the classes in masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Ge, Gt, Le, Len

from raysim.core.errors import ConfigError
from raysim.core.whole_images import PatchOptions, SlidingWindow
from raysim.data.image_formats import Colour, is_volume
from raysim.data.mask_values import IGNORED, MaskClasses
from raysim.data.table import read_table
from raysim.tasks.image_config import ImageData

ColourValue = Annotated[int, Ge(0), Le(65535)]


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images, masks, classes, sites and preprocessing."""

    classes: Annotated[
        dict[str, int] | tuple[str, ...] | None,
        Len(2, 256),
        "classes, background first: each name with its value in the masks, or names of 0, 1, ...; by default, "
        "and for two names, 0 is the first class and the only other value is the second",
    ] = None
    ignore: Annotated[int | None, Ge(0), "mask value that loss and metrics leave out; by default none"] = None

    colours: Annotated[
        dict[str, tuple[ColourValue, ColourValue, ColourValue]] | None,
        Len(2, 256),
        "red, green and blue of each class in masks that are pictures, background first; instead of `classes`",
    ] = None

    patch: Annotated[
        tuple[Annotated[int, Gt(0)], ...] | None,
        Len(2, 3),
        "pixels or voxels of a patch along each axis. Images keep their sizes; training draws patches of them, and "
        "evaluation predicts them in windows of this size (`task.window`)",
    ] = None
    patches_per_image: Annotated[int, Gt(0), "patches of each image or slice in an epoch of training"] = 4
    positive: Annotated[
        float,
        Ge(0),
        Le(1),
        "share of patches whose centre is in a class other than the background, each class of the image equally often",
    ] = 0.33

    def patches(self, window: SlidingWindow) -> PatchOptions | None:
        """How patches are drawn and predicted; None if examples are not patches."""
        if self.patch is None:
            return None
        return PatchOptions(size=self.patch, per_image=self.patches_per_image, positive=self.positive, window=window)

    def check_patch(self, dims: int, window: SlidingWindow) -> None:
        """Raises ConfigError for a patch or a window that does not fit images with `dims` axes."""
        if self.patch is None:
            return
        if self.size is not None:
            raise ConfigError(
                f"task.data.patch={list(self.patch)} keeps the size of each image, but task.data.size="
                f"{list(self.size)} changes it; remove task.data.size, or remove task.data.patch"
            )
        if len(self.patch) != dims:
            raise ConfigError(
                f"task.data.patch={list(self.patch)} has {len(self.patch)} numbers, but images have {dims} axes; write "
                "one number per axis"
            )
        if wrong := [axis for axis in window.mirror if axis >= dims]:
            raise ConfigError(
                f"task.window.mirror={list(window.mirror)}: axis {wrong[0]} does not exist, because images have {dims} "
                f"axes; expected 0 to {dims - 1}"
            )

    def values(self) -> dict[str, int | None]:
        """The value of each class in the masks, background first; None for the only value besides 0.

        Raises ConfigError for duplicates.
        """
        if self.colours is not None:
            return self._values_of_colours(self.colours)
        classes = ("background", "foreground") if self.classes is None else self.classes
        pairs: list[tuple[str, int | None]]
        if isinstance(classes, Mapping):
            pairs = list(classes.items())
        else:
            pairs = [(name, number) for number, name in enumerate(classes)]
            pairs = [pairs[0], (classes[1], None)] if len(pairs) == 2 else pairs
        values = dict(pairs)
        if len(values) < len(classes) or len(set(values.values())) < len(values):
            raise ConfigError(
                f"task.data.classes={self.classes}: every class needs a distinct name and a distinct value"
            )
        self._check_ignore(values)
        return values

    def _check_ignore(self, values: MaskClasses) -> None:
        names = [name for name, value in values.items() if value == self.ignore]
        if self.ignore is None:
            return
        if names:
            raise ConfigError(
                f"task.data.ignore={self.ignore} is the value of class {names[0]!r}; remove one of the two"
            )
        if len(values) > IGNORED:
            raise ConfigError(f"task.data.ignore={self.ignore}: expected at most {IGNORED} classes, not {len(values)}")

    def _values_of_colours(self, colours: Mapping[str, Colour]) -> dict[str, int | None]:
        """The index of each class. Raises ConfigError for equal colours, and for `classes` with other names."""
        if len(set(colours.values())) < len(colours):
            raise ConfigError(f"task.data.colours={dict(colours)}: every class needs a distinct colour")
        if self.ignore is not None:
            raise ConfigError(f"task.data.ignore={self.ignore} needs mask values, not task.data.colours; remove one")
        if self.classes is not None and tuple(self.classes) != tuple(colours):
            raise ConfigError(
                f"task.data.classes has {list(self.classes)}, but task.data.colours has {list(colours)}; "
                "remove task.data.classes"
            )
        return {name: index for index, name in enumerate(colours)}

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with sites, splits and labels."""
        table = self.select_rows(read_table(self.table, self.root, label_files=True, **self.image_options()))
        volumes = table["label"].dropna().map(is_volume)
        if self.colours is not None and volumes.any():
            raise ConfigError(
                f"{table['label'].dropna()[volumes].iloc[0]}: a volume has no colours; use task.data.classes and not "
                "task.data.colours"
            )
        return table
