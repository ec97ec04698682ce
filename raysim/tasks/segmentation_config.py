"""The keys under `task.data` of a segmentation: images, masks, and the values of the classes in masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Ge, Le, Len

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Colour, is_volume
from raysim.data.table import read_table
from raysim.tasks.image_config import ImageData

DEFAULT_CLASSES = ("background", "foreground")
ColourValue = Annotated[int, Ge(0), Le(65535)]


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images, masks, classes, sites and preprocessing."""

    classes: Annotated[
        dict[str, int] | tuple[str, ...],
        Len(2, 256),
        "classes, background first: names of 0, 1, ..., or each name with its value in the label files",
    ] = DEFAULT_CLASSES
    colours: Annotated[
        dict[str, tuple[ColourValue, ColourValue, ColourValue]] | None,
        Len(2, 256),
        "red, green and blue of each class in masks that are pictures, background first; instead of `classes`",
    ] = None

    def values(self) -> dict[str, int]:
        """The value of each class in the label files, background first. Raises ConfigError for duplicates."""
        if self.colours is not None:
            return self._values_of_colours(self.colours)
        pairs = (
            self.classes.items() if isinstance(self.classes, Mapping) else zip(self.classes, range(256), strict=False)
        )
        values = dict(pairs)
        if len(values) < len(self.classes) or len(set(values.values())) < len(values):
            raise ConfigError(
                f"task.data.classes={self.classes}: every class needs a distinct name and a distinct value"
            )
        return values

    def _values_of_colours(self, colours: Mapping[str, Colour]) -> dict[str, int]:
        """The index of each class. Raises ConfigError for equal colours, and for `classes` with other names."""
        if len(set(colours.values())) < len(colours):
            raise ConfigError(f"task.data.colours={dict(colours)}: every class needs a distinct colour")
        if self.classes != DEFAULT_CLASSES and tuple(self.classes) != tuple(colours):
            raise ConfigError(
                f"task.data.classes has {list(self.classes)}, but task.data.colours has {list(colours)}; "
                "remove task.data.classes"
            )
        return {name: index for index, name in enumerate(colours)}

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with sites, splits and labels."""
        table = self.select_rows(read_table(self.table, self.root, label_files=True))
        volumes = table["label"].dropna().map(is_volume)
        if self.colours is not None and volumes.any():
            raise ConfigError(
                f"{table['label'].dropna()[volumes].iloc[0]}: a volume has no colours; use task.data.classes and not "
                "task.data.colours"
            )
        return table
