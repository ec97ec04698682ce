"""A number for each picture or volume, such as an age: a column of a table.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pandas as pd

from raysim.core.contracts import ProgressCallback, Task
from raysim.core.targets import Target
from raysim.data.label_columns import decode_labels, number_label, number_ranges
from raysim.data.table import read_table, sort_rows
from raysim.tasks.image_config import ImageData
from raysim.tasks.label_config import NumberColumn, NumberScale, scale_of_numbers
from raysim.tasks.library_names import NUMBER_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NetworkOption
from raysim.tasks.number_metrics import DEFAULT_METRICS, NumberScore
from raysim.tasks.shared_keys import Augmentation, BatchSize, MetricNames


@dataclass(frozen=True, kw_only=True)
class RegressionData(ImageData):
    """Images, the column with the number, sites and preprocessing."""

    target: NumberColumn = "label"
    target_scale: NumberScale = None

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with a number as `label`."""
        table = read_table(
            self.table, self.root, needs_label=False, label_files=False, in_order=True, **self.image_options()
        )
        table = sort_rows(number_label(table, self.target, self.table))
        return decode_labels(self.select_rows(table), Target.NUMBER)


@dataclass(frozen=True, kw_only=True)
class Regression:
    """The keys under `task` of a regression on images."""

    name: Literal["regression"] = "regression"
    data: Annotated[RegressionData, "images, sites and preparation"] = field(default_factory=RegressionData)
    network: NetworkOption = field(default_factory=lambda: {"name": "resnet"})
    loss: Annotated[
        dict[str, Any], "mse, l1, smooth_l1 (beta), huber (delta) of torch or module:Name, and its arguments"
    ] = field(default_factory=lambda: {"name": "mse"})
    metrics: MetricNames = DEFAULT_METRICS
    batch_size: BatchSize = 16
    augment: Augmentation = ()

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        check_network_name(self.network)
        check_loss_name(self.loss, NUMBER_LOSSES)
        self._read()

    def build(self, progress: ProgressCallback | None = None, rows: pd.DataFrame | None = None) -> Task:
        """The task, with the data of every site prepared; `progress(done, total)` is called after each case.

        Labels are (N, 1), float32. `rows` replace the cases of the table, with absolute paths.
        Raises ConfigError for anything invalid in the configuration, the table or the images.
        """
        from raysim.tasks.labelled_images import build_labelled_images
        from raysim.tasks.losses import make_number_loss

        table, dims, score = self._read(rows)
        scale = score.offset, score.unit
        return build_labelled_images(
            self,
            table,
            dims=dims,
            loss=make_number_loss(self.loss, scale),
            score=score,
            outputs={self.data.target: self.data.target},
            summary=number_ranges(table, self.data.target),
            target=Target.NUMBER,
            progress=progress,
            computed={"target_scale": scale} if self.data.target_scale is None else {},
        )

    def _read(self, rows: pd.DataFrame | None = None) -> tuple[pd.DataFrame, int, NumberScore]:
        """The rows of the table, the number of spatial axes, and the metrics."""
        table = self.data.read() if rows is None else rows
        scale = self.data.target_scale or scale_of_numbers(table, self.data.outside, self.data.table)
        return table, self.data.dimensions(table), NumberScore(self.metrics, self.batch_size, *scale)
