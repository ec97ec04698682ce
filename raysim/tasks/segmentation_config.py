"""The keys under `task.data` of a segmentation: images, masks, and the values of the classes in masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Ge, Len

from raysim.core.errors import ConfigError
from raysim.data.mask_values import IGNORED, MaskClasses
from raysim.data.table import read_table
from raysim.tasks.image_config import ImageData


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images, masks, classes, sites and preprocessing."""

    classes: Annotated[
        dict[str, int] | tuple[str, ...] | None,
        Len(2, 256),
        "classes, background first: each name with its value in the label files, or names of 0, 1, ...; by default, "
        "and for two names, 0 is the first class and the only other value the second",
    ] = None
    ignore: Annotated[
        int | None, Ge(0), "value in the label files that loss and metrics leave out; by default none"
    ] = None

    def values(self) -> dict[str, int | None]:
        """The value of each class in the label files, background first; None for the only value besides 0.

        Raises ConfigError for duplicates.
        """
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

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with sites, splits and labels."""
        return self.select_rows(read_table(self.table, self.root, label_files=True))
