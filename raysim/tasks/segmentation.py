"""Segmentation of pictures, volumes, or slices of volumes that a table lists.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge

from raysim.core.contracts import ProgressCallback, Task
from raysim.core.formatting import join_names, pluralize
from raysim.core.whole_images import SlidingWindow
from raysim.data.file_inspection import MAX_LABEL_VALUES
from raysim.data.image_sites import ImageSites, common_shape, prepare_images, split_sizes
from raysim.data.mask_values import MaskClasses
from raysim.tasks.library_names import SEGMENTATION_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NetworkOption
from raysim.tasks.nnunet_plans import read_plans, uses_plans
from raysim.tasks.segmentation_config import SegmentationData
from raysim.tasks.segmentation_metrics import SegmentationScore
from raysim.tasks.shared_keys import Augmentation, BatchSize, MetricNames

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The keys under `task` of a segmentation of images."""

    name: Literal["segmentation"] = "segmentation"
    data: Annotated[SegmentationData, "images, sites and preparation"] = field(default_factory=SegmentationData)
    network: NetworkOption = field(default_factory=lambda: {"name": "unet"})
    loss: Annotated[dict[str, Any], "name of `raysim list losses` or module:Name, and its arguments"] = field(
        default_factory=lambda: {"name": "dice_ce"}
    )
    metrics: MetricNames = ("dice",)
    surface_tolerance_mm: Annotated[
        float, Ge(0), "mm: surface_dice counts the surface within this distance of the other surface"
    ] = 1.0
    window: Annotated[SlidingWindow, "how whole images are predicted if `task.data.patch` is set"] = field(
        default_factory=SlidingWindow
    )
    batch_size: BatchSize = 8
    augment: Augmentation = ()

    def __post_init__(self) -> None:
        if uses_plans(self.network):
            plans = read_plans(self.network)
            keeps_size = self.data.size is None and self.data.patch is None
            data = replace(self.data, patch=plans.patch) if keeps_size else self.data
            data = replace(data, spacing=plans.spacing) if data.spacing is None else data
            object.__setattr__(self, "data", data)
            object.__setattr__(self, "network", plans.network)

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        check_network_name(self.network)
        check_loss_name(self.loss, SEGMENTATION_LOSSES)
        self._read()

    def build(self, progress: ProgressCallback | None = None, rows: pd.DataFrame | None = None) -> Task:
        """The task, with the data of every site prepared; `progress(done, total)` is called after each case.

        `rows` replace the cases of the table, with absolute paths.
        Raises ConfigError for anything invalid in the configuration, the table or the images.
        """
        from raysim.tasks.augmentation import make_augmentation
        from raysim.tasks.build_task import build_task
        from raysim.tasks.losses import make_segmentation_loss
        from raysim.tasks.networks import check_network_spec

        table, values, dims, score = self._read(rows)
        criterion = make_segmentation_loss(self.loss, score.ignored)
        check_network_spec(self.network, dims, len(values))  # before images are read: it is fast
        sites, computed = self._sites(table, values)
        arrays = prepare_images(sites, progress)
        _warn_about_cropping(sites, arrays)
        class_values = _class_values(values, arrays)
        summary = "; ".join([_summarize_classes(class_values, arrays), *format_computed(computed)])
        channels, *size = common_shape(arrays)
        return build_task(
            self,
            open=sites,
            case_names=sites.case_names,
            sizes=split_sizes(arrays),
            outside=self.data.outside,
            shape=(channels, *size),
            classes=len(values),
            loss=criterion,
            score=score,
            augment=make_augmentation(self.augment, channels, size),
            per_voxel=True,
            summary=summary,
            class_values=class_values,
            computed=computed,
        )

    def _sites(self, table: pd.DataFrame, values: MaskClasses) -> tuple[ImageSites, dict[str, Any]]:
        """The sites, and the values of keys that were computed from their images."""
        given = table, values, self.data.colours, self.data.ignore, self.data.patches(self.window)
        sites = self.data.make_sites(*given)
        computed = self.data.computed(sites)
        return (replace(self.data, **computed).make_sites(*given) if computed else sites), computed

    def _read(
        self, rows: pd.DataFrame | None = None
    ) -> tuple[pd.DataFrame, dict[str, int | None], int, SegmentationScore]:
        """The rows of the table, the value of each class in masks, the number of spatial axes, and the metrics."""
        values = self.data.values()
        table = self.data.read() if rows is None else rows
        dims, ignored = self.data.dimensions(table), self.data.ignore is not None
        self.data.check_patch(dims, self.window)
        axes = 3 if self.data.slices else dims
        return (
            table,
            values,
            dims,
            SegmentationScore(
                classes=tuple(values),
                metrics=self.metrics,
                batch_size=self.batch_size,
                dims=axes,
                ignored=ignored,
                surface_tolerance_mm=self.surface_tolerance_mm,
            ),
        )


def format_computed(computed: Mapping[str, Any]) -> Iterator[str]:
    """`task.data.spacing=[1, 1, 2]` for each computed key."""
    for key, value in computed.items():
        yield f"task.data.{key}=[{', '.join(f'{number:.4g}' for number in value)}]"


def _class_values(values: MaskClasses, arrays: Mapping[str, Mapping[str, Array]]) -> dict[str, int]:
    """The value of each class in masks. A class with the value None has that of the masks, or 1 if absent."""
    foreground = max((int(fields["foreground"].max()) for fields in arrays.values()), default=0)
    return {name: value if value is not None else foreground or 1 for name, value in values.items()}


def _summarize_classes(values: Mapping[str, int], arrays: Mapping[str, Mapping[str, Array]]) -> str:
    """`classes, ...: background 0 (95.0 %), disc 255 (5.0 %)`. Warns of classes that no mask has."""
    voxels = sum((fields["voxels"].sum(0) for fields in arrays.values()), np.zeros(256, np.int64))[: len(values)]
    absent = [f"{name} ({values[name]})" for name, count in zip(values, voxels, strict=True) if not count]
    if absent and voxels.any():
        warnings.warn(
            f"classes that no prepared mask has: {join_names(absent)}; the network has an output for each of them. "
            "Remove them from task.data.classes, or correct their values",
            stacklevel=3,
        )
    shares = 100 * voxels / max(1, voxels.sum())
    shown = [f"{name} {values[name]} ({share:.1f} %)" for name, share in zip(values, shares, strict=True)]
    more = f" and {len(shown) - MAX_LABEL_VALUES} more" if len(shown) > MAX_LABEL_VALUES else ""
    return f"classes, mask values and shares of voxels: {', '.join(shown[:MAX_LABEL_VALUES])}{more}"


def _warn_about_cropping(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    lost = {
        row.image: fraction
        for site in arrays
        for row, fraction in zip(sites.rows[site], arrays[site]["lost"], strict=True)
        if fraction
    }
    if lost:
        worst = max(lost, key=lambda image: lost[image])
        warnings.warn(
            f"task.data.size removes labelled voxels from {pluralize(len(lost), 'image')}, at most {lost[worst]:.1%} "
            f"from {worst}; set a larger task.data.size to keep them",
            stacklevel=3,
        )
