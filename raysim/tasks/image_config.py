"""The keys under `task.data` that all image tasks share: files, preprocessing and scanner shift."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import Gt, Len

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.core.whole_images import PatchOptions
from raysim.data.cache import cache_folder
from raysim.data.case_arrays import CaseRow
from raysim.data.case_preparation import CasePreparation
from raysim.data.file_paths import ABSOLUTE_PATH, join_path, parent_folder
from raysim.data.image_formats import EITHER_SUFFIX, Colour, is_volume
from raysim.data.image_header import check_readable
from raysim.data.image_sites import ImageSites, make_image_sites
from raysim.data.intensity import Intensity
from raysim.data.label_columns import case_label
from raysim.data.mask_values import MaskClasses
from raysim.data.patient_columns import patients_of
from raysim.data.pooled_statistics import pooled_statistics
from raysim.data.scanner_shift import ScannerShift
from raysim.tasks.table_config import TableData


@dataclass(frozen=True, kw_only=True)
class ImageData(TableData):
    """The location of images, and their preparation. Tasks add their classes in subclasses."""

    root: Annotated[
        str | None,
        ABSOLUTE_PATH,
        "folder or URL at which relative paths of the table start; by default the folder of the table",
    ] = None
    shift: Annotated[ScannerShift, "simulated differences between the sites' scanners"] = field(
        default_factory=ScannerShift
    )
    image_columns: Annotated[
        tuple[str, ...],
        Len(1),
        "columns with the images of a case, such as [image_t1,image_t2]: each gives further channels, in this order",
    ] = ("image",)
    missing: Annotated[
        Literal["refuse", "zeros"], "an empty cell of an image column after the first: an error, or a channel of zeros"
    ] = "refuse"
    align: Annotated[bool, "resample the images of a case to the grid of the first if their grids differ"] = False
    size: Annotated[
        tuple[Annotated[int, Gt(0)], ...] | None,
        Len(2, 3),
        "pixels or voxels along each axis; by default those of the file",
    ] = None
    fit: Annotated[
        Literal["resize", "pad"],
        "how images get their `size`. resize: interpolation; pad: padding and cropping around the centre",
    ] = "resize"
    spacing: Annotated[
        Annotated[tuple[Annotated[float, Gt(0)], ...], Len(2, 3)] | Literal["median"] | None,
        "mm between voxels, for volumes; by default those of the file. median: the median of the training volumes of "
        "all inside sites",
    ] = None
    crop_nonzero: Annotated[
        bool, "crop each image to the smallest box with all values other than 0, before it is resampled and scaled"
    ] = False
    slices: Annotated[bool, "split volumes into axial slices; the slices of a volume are evaluated together"] = False
    intensity: Annotated[
        Intensity,
        "scaling of each channel of an image. zscore: mean 0 and deviation 1; zscore_nonzero: the same for the values "
        "that are not 0; minmax: 0 to 1; percentile: 1st to 99th percentile become 0 to 1; window: `clip` becomes 0 to "
        "1; ct: limited to `clip`, then `scale`; unit: divided by 255; none: as in the file",
    ] = "zscore"
    clip: Annotated[
        tuple[float, float] | None,
        "values below the first and above the second number become that number, before the scaling. For ct by default "
        "the percentiles 0.5 and 99.5 of the labelled voxels in the training images of all inside sites",
    ] = None
    scale: Annotated[
        tuple[float, Annotated[float, Gt(0)]] | None,
        "for ct, the value that becomes 0, and the difference that becomes 1; by default mean and standard deviation "
        "of the labelled voxels in the training images of all inside sites",
    ] = None
    channels: Annotated[
        int | None,
        Gt(0),
        "channels of every image; by default those of the first. 3 repeats the channel of grey pictures, 1 converts "
        "pictures to grey; other images must have this number of channels",
    ] = None

    cache_limit: Annotated[
        float | None,
        Gt(0),
        "GB of all prepared data in `cache` on a node: the least recently used entries are removed; a run whose data "
        "need more is refused; by default no limit",
    ] = None

    def image_options(self) -> dict[str, Any]:
        """The arguments of `read_table` about the images of a case."""
        return {"image_columns": self.image_columns, "needs_all_images": self.missing == "refuse"}

    def dimensions(self, table: pd.DataFrame) -> int:
        """The number of spatial axes, 2 or 3. Raises ConfigError if images differ, or size or spacing do not fit."""
        volumes = table["image"].map(is_volume)
        if (volumes.any() or self.slices) and not volumes.all():
            first = table["image"][~volumes].iloc[0]
            if EITHER_SUFFIX.search(first):
                check_readable(first)
            cause = "task.data.slices=true needs volumes" if self.slices else "other images in the table are"
            raise ConfigError(f"{first} is not a volume, but {cause}; remove it from the table")
        dims = 3 if volumes.any() and not self.slices else 2
        if self.size is not None and len(self.size) != dims:
            count = pluralize(len(self.size), "number")
            raise ConfigError(
                f"task.data.size={list(self.size)} has {count}, but images have {dims} axes; write one number per axis"
            )
        if self.spacing is not None and (not volumes.all() or (self.spacing != "median" and len(self.spacing) < dims)):
            shown = self.spacing if self.spacing == "median" else list(self.spacing)
            raise ConfigError(f"task.data.spacing={shown}: expected a number per axis, only for volumes")
        self._check_intensity()
        return dims

    def _check_intensity(self) -> None:
        """Raises ConfigError for keys of the intensity that do not fit together."""
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ConfigError(f"task.data.clip={list(self.clip)}: expected [low, high] with low < high")
        if self.intensity == "window" and self.clip is None:
            raise ConfigError(
                "task.data.intensity=window needs the values that become 0 and 1; for example for soft tissue in CT "
                "add task.data.clip=[-160,240]"
            )
        if self.scale is not None and self.intensity != "ct":
            raise ConfigError(
                f"task.data.scale={list(self.scale)} is only used with task.data.intensity=ct; remove one of the two"
            )

    def needs_statistics(self) -> bool:
        """Whether keys have values that are computed from the training images of all inside sites."""
        return self.spacing == "median" or (self.intensity == "ct" and (self.clip is None or self.scale is None))

    def computed(self, sites: ImageSites) -> dict[str, Any]:
        """The values of the keys that are computed from the training images of all inside sites; `sites` opens them.

        Raises ConfigError for images that cannot be read, and if no voxel is labelled.
        """
        if not self.needs_statistics():
            return {}
        inside = [row for site, rows in sites.rows.items() if site not in self.outside for row in rows]
        rows = [row for row in inside if row.split == "train"]
        spacing, (low, high, mean, deviation) = pooled_statistics(rows, sites.preparation, sites.cache_folder)
        found: dict[str, Any] = {}
        if self.spacing == "median":
            found["spacing"] = tuple(float(mm) for mm in spacing)
        if self.intensity == "ct":
            if not deviation > 0:
                raise ConfigError(
                    "task.data.intensity=ct needs labelled voxels with different values in training images of inside "
                    "sites; set task.data.clip and task.data.scale, for example task.data.clip=[-160,240] "
                    "task.data.scale=[40,100]"
                )
            found["clip"] = self.clip or (float(low), float(high))
            found["scale"] = self.scale or (float(mean), float(deviation))
        return found

    def make_sites(
        self,
        table: pd.DataFrame,
        masks: MaskClasses | None,
        colours: Mapping[str, Colour] | None = None,
        ignore: int | None = None,
        patches: PatchOptions | None = None,
    ) -> ImageSites:
        """The opener of this table's sites.

        `masks` are the mask values by class name, and `colours` their colours if classes are colours; `masks` is None
        if the column `label` has the labels of cases. `ignore` is the mask value that is left out. With `patches`, the
        examples are patches.
        """
        root = self.root or parent_folder(os.path.expanduser(self.table))
        base = join_path(os.getcwd(), os.path.expanduser(root))
        rows: dict[str, list[CaseRow]] = {site: [] for site in sorted(set(table["site"]))}
        cells = table[["site", "split", "image", "label"]].itertuples(index=False)
        levels, patients = self._body_levels(table), patients_of(table)
        for (site, split, image, label), level, patient in zip(cells, levels, patients, strict=True):
            key = image.removeprefix(base).lstrip("/")
            rows[site].append(CaseRow(split, image, case_label(label), key, level, patient))
        preparation = replace(self.preparation(masks, colours, ignore), further=self._further_images(table))
        folder, limit = cache_folder(self.cache), self.cache_limit
        return make_image_sites(rows, preparation, self.shift, self.seed, folder, patches, limit)

    def preparation(
        self, masks: MaskClasses | None, colours: Mapping[str, Colour] | None = None, ignore: int | None = None
    ) -> CasePreparation:
        """The preparation of a case; the arguments are as in `make_sites`."""
        return CasePreparation(
            classes=masks,
            intensity=self.intensity,
            clip=self.clip,
            scale=self._scale(),
            fit=self.fit,
            size=self.size,
            spacing=None if self.spacing == "median" else self.spacing,
            slices=self.slices,
            channels=self.channels,
            colours=colours,
            ignore=ignore,
            crop_nonzero=self.crop_nonzero,
            align=self.align,
        )

    def _further_images(self, table: pd.DataFrame) -> dict[str, tuple[str | None, ...]]:
        """The first image of each case with its other images; None for a missing one. Warns of missing images."""
        further = self.image_columns[1:]
        for name in further:
            if count := int(table[name].isna().sum()):
                warnings.warn(f"{pluralize(count, 'case')} without {name}: its channel is set to 0", stacklevel=4)
        cells = [[None if pd.isna(cell) else str(cell) for cell in table[name]] for name in further]
        return dict(zip(table["image"], zip(*cells, strict=True), strict=True)) if further else {}

    def _scale(self) -> tuple[float, float] | None:
        """The value that becomes 0 and the difference that becomes 1, if they are equal for all images."""
        if self.intensity == "window" and self.clip is not None:
            return self.clip[0], self.clip[1] - self.clip[0]
        return self.scale

    def _body_levels(self, table: pd.DataFrame) -> list[int] | list[None]:
        """The rank, from 1, of each picture's value in column `partition`; None without the column, or for volumes."""
        if "partition" not in table or table["image"].map(is_volume).any():
            return [None] * len(table)
        cells = table["partition"].astype("string")
        if cells.isna().any():
            first = table["image"][cells.isna()].iloc[0]
            raise ConfigError(
                f"table {self.table}: column 'partition' is empty for {first}; fill all its cells, or remove it"
            )
        numbers = pd.to_numeric(cells, errors="coerce")
        values = cells if numbers.isna().any() else numbers
        return [int(level) for level in values.rank(method="dense")]
