"""The data of a segmentation: images, and masks with the classes that their values stand for."""

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
    """Which images and masks, at which sites, and how they are prepared."""

    classes: Annotated[
        dict[str, int] | tuple[str, ...],
        Len(2, 256),
        "classes, background first: names of 0, 1, ..., or each name with its value in the label files",
    ] = ("background", "foreground")

    def values(self) -> dict[str, int]:
        """The value in the label files of each class, background first."""
        pairs = (
            self.classes.items() if isinstance(self.classes, Mapping) else zip(self.classes, range(256), strict=False)
        )
        values = dict(pairs)
        if len(values) < len(self.classes) or len(set(values.values())) < len(values):
            raise ConfigError(f"task.data.classes={self.classes}: every class needs a name and a value of its own")
        return values

    def read(self) -> pd.DataFrame:
        """The table with the sites, splits and labels that this task uses."""
        return self.shared_out(read_table(self.table, self.root, label_files=True))
