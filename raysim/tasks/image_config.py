"""What the data of every task on images have in common: how the images of a table are prepared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pandas as pd
from annotated_types import Gt, Len

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.cache import cache_folder
from raysim.data.case_preparation import Intensity, Preparation
from raysim.data.file_paths import ABSOLUTE_PATH, folder_of, joined
from raysim.data.image_reading import is_volume
from raysim.data.image_sites import CaseRow, ImageSites, image_sites
from raysim.data.scanner_shift import ScannerShift
from raysim.tasks.table_config import TableData


@dataclass(frozen=True, kw_only=True)
class ImageData(TableData):
    """How images are found and prepared. Tasks extend it with their classes."""

    root: Annotated[
        str | None, ABSOLUTE_PATH, "folder or URL that paths in the table start from; by default the table's"
    ] = None
    shift: Annotated[ScannerShift, "simulated differences between the sites' scanners"] = field(
        default_factory=ScannerShift
    )
    size: Annotated[
        tuple[Annotated[int, Gt(0)], ...] | None, Len(2, 3), "pixels or voxels along each axis; by default as read"
    ] = None
    fit: Annotated[Literal["resize", "pad"], "to reach `size`: interpolate, or pad and crop round the centre"] = (
        "resize"
    )
    spacing: Annotated[
        tuple[Annotated[float, Gt(0)], ...] | None, Len(2, 3), "mm between voxels, for volumes; by default as read"
    ] = None
    slices: Annotated[bool, "volumes as axial slices, judged together"] = False
    intensity: Annotated[
        Intensity,
        "scale of each channel of an image: mean 0 and deviation 1, 0 to 1, 1st to 99th percentile, / 255, as read",
    ] = "zscore"
    channels: Annotated[int | None, Gt(0), "channels every image must have; by default what the first has"] = None

    def dimensions(self, table: pd.DataFrame) -> int:
        """2 or 3, the axes of an example. Raises ConfigError if the images differ, or size and spacing do not fit."""
        volumes = table["image"].map(is_volume)
        if (volumes.any() or self.slices) and not volumes.all():
            other = table["image"][~volumes].iloc[0]
            cause = "task.data.slices=true needs" if self.slices else "others in the table are"
            raise ConfigError(f"{other} is no NIfTI volume, which {cause}; leave it out of the table")
        dims = 3 if volumes.any() and not self.slices else 2
        if self.size is not None and len(self.size) != dims:
            raise ConfigError(
                f"task.data.size={list(self.size)} has {pluralize(len(self.size), 'number')}, but images have {dims} axes"
            )
        if self.spacing is not None and (not volumes.all() or len(self.spacing) < dims):
            raise ConfigError(f"task.data.spacing={list(self.spacing)}: give a number per axis, and only for volumes")
        return dims

    def opener(self, table: pd.DataFrame, masks: Mapping[str, int] | None) -> ImageSites:
        """What opens the sites of this table.

        `masks` are the values in label files by class; None where the column `label` has indices of classes.
        """
        start = self.root or folder_of(os.path.expanduser(self.table))
        base = joined(os.getcwd(), os.path.expanduser(start))
        rows: dict[str, list[CaseRow]] = {site: [] for site in sorted(set(table["site"]))}
        named = table[["site", "split", "image", "label"]].itertuples(index=False)
        for (site, split, image, label), level in zip(named, self._levels(table), strict=True):
            given = None if pd.isna(label) else label if masks else int(label)
            rows[site].append(CaseRow(split, image, given, image.removeprefix(base).lstrip("/"), level))
        how = Preparation(masks, self.intensity, self.fit, self.size, self.spacing, self.slices, self.channels)
        return image_sites(rows, how, self.shift, self.seed, cache_folder(self.cache))

    def _levels(self, table: pd.DataFrame) -> list[int] | list[None]:
        """1, 2, ... for the values of a column `partition` of pictures, as they sort; of slices their place tells."""
        if "partition" not in table or table["image"].map(is_volume).any():
            return [None] * len(table)
        cells = table["partition"].astype("string")
        if cells.isna().any():
            first = table["image"][cells.isna()].iloc[0]
            raise ConfigError(
                f"table {self.table}: the cell `partition` of {first} is empty; fill all, or drop the column"
            )
        numbers = pd.to_numeric(cells, errors="coerce")
        values = cells if numbers.isna().any() else numbers
        return [int(level) for level in values.rank(method="dense")]
