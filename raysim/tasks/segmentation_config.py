"""The keys under `task.data` of a segmentation: images, masks, and the values of the classes in masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Len

from raysim.core.errors import ConfigError
from raysim.data.table import read_table
from raysim.tasks.image_config import ImageData


@dataclass(frozen=True, kw_only=True)
class SegmentationData(ImageData):
    """Images, masks, classes, sites and preprocessing."""

    classes: Annotated[
        dict[str, int] | tuple[str, ...],
        Len(2, 256),
        "classes, background first: names of 0, 1, ..., or each name with its value in the label files",
    ] = ("background", "foreground")

    def values(self) -> dict[str, int]:
        """The value of each class in the label files, background first. Raises ConfigError for duplicates."""
        pairs = (
            self.classes.items() if isinstance(self.classes, Mapping) else zip(self.classes, range(256), strict=False)
        )
        values = dict(pairs)
        if len(values) < len(self.classes) or len(set(values.values())) < len(values):
            raise ConfigError(
                f"task.data.classes={self.classes}: every class needs a distinct name and a distinct value"
            )
        return values

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with sites, splits and labels."""
        return self.select_rows(read_table(self.table, self.root, label_files=True))
