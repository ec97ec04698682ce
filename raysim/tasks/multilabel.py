"""Several labels of each picture or volume: columns of a table with 0 and 1.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pandas as pd

from raysim.core.contracts import ProgressCallback, Task
from raysim.core.targets import Target
from raysim.data.label_columns import decode_labels, label_counts, several_labels
from raysim.data.table import read_table, sort_rows
from raysim.tasks.image_config import ImageData
from raysim.tasks.label_config import LabelColumns, check_label_columns
from raysim.tasks.label_metrics import DEFAULT_METRICS, LabelScore
from raysim.tasks.library_names import LABEL_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NetworkOption
from raysim.tasks.shared_keys import Augmentation, BatchSize, MetricNames


@dataclass(frozen=True, kw_only=True)
class MultiLabelData(ImageData):
    """Images, label columns, sites and preprocessing."""

    labels: LabelColumns = ()

    def read(self) -> pd.DataFrame:
        """The rows that this task uses, with a tuple of 0 and 1 as `label`."""
        check_label_columns(self.labels)
        table = read_table(
            self.table, self.root, needs_label=False, label_files=False, in_order=True, **self.image_options()
        )
        table = sort_rows(several_labels(table, self.labels, self.table))
        return decode_labels(self.select_rows(table), Target.LABELS)


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """The keys under `task` of a classification with several labels of an image."""

    name: Literal["multilabel"] = "multilabel"
    data: Annotated[MultiLabelData, "images, sites and preparation"] = field(default_factory=MultiLabelData)
    network: NetworkOption = field(default_factory=lambda: {"name": "resnet"})
    loss: Annotated[
        dict[str, Any], "bce_with_logits (weight, pos_weight), MONAI's focal or module:Name, and its arguments"
    ] = field(default_factory=lambda: {"name": "bce_with_logits"})
    metrics: MetricNames = DEFAULT_METRICS
    batch_size: BatchSize = 16
    augment: Augmentation = ()

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        check_network_name(self.network)
        check_loss_name(self.loss, LABEL_LOSSES)
        self._read()

    def build(self, progress: ProgressCallback | None = None, rows: pd.DataFrame | None = None) -> Task:
        """The task, with the data of every site prepared; `progress(done, total)` is called after each case.

        Labels are (N, L), 0 or 1. `rows` replace the cases of the table, with absolute paths.
        Raises ConfigError for anything invalid in the configuration, the table or the images.
        """
        from raysim.tasks.labelled_images import build_labelled_images
        from raysim.tasks.losses import make_label_loss

        table, dims, score = self._read(rows)
        return build_labelled_images(
            self,
            table,
            dims=dims,
            loss=make_label_loss(self.loss),
            score=score,
            outputs={name: name for name in self.data.labels},
            summary=label_counts(table, self.data.labels),
            target=Target.LABELS,
            progress=progress,
        )

    def _read(self, rows: pd.DataFrame | None = None) -> tuple[pd.DataFrame, int, LabelScore]:
        """The rows of the table, the number of spatial axes, and the metrics."""
        table = self.data.read() if rows is None else rows
        return table, self.data.dimensions(table), LabelScore(self.data.labels, self.metrics, self.batch_size)
