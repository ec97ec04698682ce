"""Segmentation of pictures, volumes, or slices of volumes that a table lists."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Len

from raysim.core.contracts import ProgressCallback, Task
from raysim.core.formatting import pluralize
from raysim.data.image_sites import ImageSites, common_shape, prepare_images, split_sizes
from raysim.tasks.augmentation import make_augmentation
from raysim.tasks.build_task import build_task
from raysim.tasks.losses import make_segmentation_loss
from raysim.tasks.networks import check_network_spec
from raysim.tasks.segmentation_config import SegmentationData
from raysim.tasks.segmentation_metrics import SegmentationScore

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The keys under `task` of a segmentation of images."""

    name: Literal["segmentation"] = "segmentation"
    data: Annotated[SegmentationData, "images, sites and preparation"] = field(default_factory=SegmentationData)
    network: Annotated[dict[str, Any], "name of a MONAI network or module:Class, and its arguments"] = field(
        default_factory=lambda: {"name": "unet"}
    )
    loss: Annotated[dict[str, Any], "name of a MONAI loss or module:Class, and its arguments"] = field(
        default_factory=lambda: {"name": "dice_ce"}
    )
    metrics: Annotated[tuple[str, ...], Len(1), "the main one first: dice, hd95, asd, or module:Name"] = ("dice",)
    batch_size: Annotated[int, Gt(0), "examples in a batch"] = 8
    augment: Annotated[
        tuple[dict[str, Any], ...], "names of random MONAI transforms or module:Class, and their arguments"
    ] = ()

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task, with the data of every site prepared; `progress(done, total)` is called after each case.

        Raises ConfigError for anything invalid in the configuration, the table or the images.
        """
        values = self.data.values()
        table = self.data.read()
        dims = self.data.dimensions(table)
        criterion, score = (
            make_segmentation_loss(self.loss),
            SegmentationScore(tuple(values), self.metrics, self.batch_size, 3 if self.data.slices else dims),
        )
        check_network_spec(self.network, dims, len(values))  # before images are read: it is fast
        sites = self.data.make_sites(table, values, self.data.colours)
        arrays = prepare_images(sites, progress)
        _warn_about_cropping(sites, arrays)
        channels, *size = common_shape(arrays)
        return build_task(
            self,
            open=sites,
            sizes=split_sizes(arrays),
            outside=self.data.outside,
            shape=(channels, *size),
            classes=len(values),
            loss=criterion,
            score=score,
            augment=make_augmentation(self.augment, channels, size),
            per_voxel=True,
        )


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
