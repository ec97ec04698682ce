"""Builds a task of images with a label for each case: a class, several labels or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd

from raysim.core.contracts import ProgressCallback, Sampling, Scorer, Task
from raysim.core.targets import Target
from raysim.data.image_sites import common_shape, prepare_images, split_sizes
from raysim.tasks.augmentation import make_augmentation
from raysim.tasks.build_task import TaskOptions, build_task
from raysim.tasks.image_config import ImageData
from raysim.tasks.losses import Loss
from raysim.tasks.networks import check_network_spec


class ImageTaskOptions(TaskOptions, Protocol):
    """The keys of a task of images with labels."""

    @property
    def data(self) -> ImageData: ...
    @property
    def augment(self) -> tuple[dict[str, Any], ...]: ...


def build_labelled_images(
    config: ImageTaskOptions,
    table: pd.DataFrame,
    *,
    dims: int,
    loss: Loss,
    score: Scorer,
    outputs: Mapping[str, str],
    summary: str,
    target: Target = Target.CLASS,
    sampling: Sampling = "uniform",
    progress: ProgressCallback | None = None,
    computed: Mapping[str, Any] | None = None,
) -> Task:
    """The task for the cases of `table`, whose column `label` has a `Label`; labels are those of `label_rows`.

    `dims` is the number of spatial axes. `outputs` are the outputs of the network, as in `Task.class_values`.
    Raises ConfigError for anything invalid in the configuration or the images.
    """
    check_network_spec(config.network, dims, len(outputs))  # before images are read: it is fast
    sites = config.data.make_sites(table, None)
    found = config.data.computed(sites)
    sites = replace(config.data, **found).make_sites(table, None) if found else sites
    arrays = prepare_images(sites, progress)
    channels, *size = common_shape(arrays)
    return build_task(
        config,
        open=sites,
        case_names=sites.case_names,
        sizes=split_sizes(arrays),
        outside=config.data.outside,
        shape=(channels, *size),
        classes=len(outputs),
        loss=loss,
        score=score,
        augment=make_augmentation(config.augment, channels, size, mask=False),
        per_voxel=False,
        sampling=sampling,
        summary=summary,
        class_values=outputs,
        computed={**found, **(computed or {})},
        target=target,
    )
