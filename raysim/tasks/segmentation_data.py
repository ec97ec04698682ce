"""The data of a segmentation: which images, at which sites, and how they are prepared."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pandas as pd
from annotated_types import Ge, Gt, Len

from raysim.data.cache import cache_folder
from raysim.data.cases import Intensity, Preparation
from raysim.data.files import ABSOLUTE, folder_of, joined
from raysim.data.images import is_volume
from raysim.data.partition import Partition, keep_labelled, parted, partition
from raysim.data.shift import Shift
from raysim.data.sites import Row, Sites, sites
from raysim.data.table import labels_are_files, read_table
from raysim.data.wording import counted, listed
from raysim.errors import ConfigError
from raysim.tasks.lookup import unknown


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """Which images, at which sites, and how they are prepared."""

    table: Annotated[str, ABSOLUTE, "CSV or Parquet file, or URL, with the columns site, split, image, label"] = ""
    root: Annotated[
        str | None, ABSOLUTE, "folder or URL that paths in the table start from; by default the table's"
    ] = None
    outside: Annotated[tuple[str, ...], "sites that are only judged"] = ()
    partition: Annotated[Partition | None, "makes new inside sites from the table's"] = None
    shift: Annotated[Shift, "simulated differences between the sites' scanners"] = field(default_factory=Shift)
    labelled: Annotated[int | None, Ge(1), "labelled training rows each site keeps; by default all"] = None
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
    classes: Annotated[
        dict[str, int] | tuple[str, ...],
        Len(2, 256),
        "classes, background first: names of 0, 1, ..., or each name with its value in the label files",
    ] = ("background", "foreground")
    intensity: Annotated[
        Intensity,
        "scale of each channel of an image: mean 0 and deviation 1, 0 to 1, 1st to 99th percentile, / 255, as read",
    ] = "zscore"
    channels: Annotated[int | None, Gt(0), "channels every image must have; by default what the first has"] = None
    seed: Annotated[int, Ge(0), "draws partition, scanners and labelled rows, apart from the run's seed"] = 0
    cache: Annotated[
        str | None, ABSOLUTE, "folder of prepared data; by default $RAYSIM_CACHE, else raysim in the user's cache"
    ] = None

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
        if not self.table:
            raise ConfigError(
                "segmentation needs data: task.data.table=FILE, a CSV or Parquet table of images and labels"
            )
        table = self._listed()
        if self.partition is not None:
            away = table["site"].isin(self.outside)  # a site to judge on must not be shared out to train on
            made = partition(table[~away], self.partition, self.seed)
            for site in sorted(set(made["site"]) & set(self.outside)):
                raise ConfigError(
                    f"task.data.partition makes a site '{site}', which is in task.data.outside; rename one"
                )
            table = pd.concat([made, table[away]], ignore_index=True)
        if self.labelled is not None:
            table = keep_labelled(table, self.labelled, self.seed)
        found = set(table["site"])
        for site in self.outside:
            if site not in found:
                raise unknown("site in task.data.outside:", site, found)
        if found <= set(self.outside):
            raise ConfigError(f"task.data.outside={list(self.outside)} leaves no site to train at; take one out")
        return table

    def _listed(self) -> pd.DataFrame:
        """The table as it is in its file."""
        table = read_table(self.table, self.root)
        labels = table["label"].dropna()
        if len(labels) and not labels_are_files(table):
            raise ConfigError(
                f"table {self.table}: its labels are classes ({listed(sorted(labels.unique()))}); "
                "segmentation needs in the column 'label' the path of a mask for each image"
            )
        if told := parted(table):
            warnings.warn(told, stacklevel=4)
        return table

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
                f"task.data.size={list(self.size)} has {counted(len(self.size), 'number')}, but images have {dims} axes"
            )
        if self.spacing is not None and (not volumes.all() or len(self.spacing) < dims):
            raise ConfigError(f"task.data.spacing={list(self.spacing)}: give a number per axis, and only for volumes")
        return dims

    def sites(self, table: pd.DataFrame) -> Sites:
        """What opens the sites of this table."""
        start = self.root or folder_of(os.path.expanduser(self.table))
        base = joined(os.getcwd(), os.path.expanduser(start))
        rows: dict[str, list[Row]] = {site: [] for site in sorted(set(table["site"]))}
        for site, split, image, label in table[["site", "split", "image", "label"]].itertuples(index=False):
            key = image.removeprefix(base).lstrip("/")
            rows[site].append(Row(split, image, None if pd.isna(label) else label, key))
        how = Preparation(self.values(), self.intensity, self.fit, self.size, self.spacing, self.slices, self.channels)
        return sites(rows, how, self.shift, self.seed, cache_folder(self.cache))
