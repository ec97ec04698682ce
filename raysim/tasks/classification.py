"""Classification of pictures or volumes that a table lists with their classes.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pandas as pd

from raysim.core.contracts import ProgressCallback, Sampling, Task
from raysim.core.errors import ConfigError
from raysim.data.label_classes import ClassesOption, class_counts, encode_labels, label_values, resolve_classes
from raysim.data.table import PATH_PATTERN, labels_are_files, read_table
from raysim.tasks.classification_metrics import DEFAULT_METRICS, ClassificationScore
from raysim.tasks.image_config import ImageData
from raysim.tasks.library_names import CLASSIFICATION_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NetworkOption
from raysim.tasks.shared_keys import Augmentation, BatchSize, MetricNames


@dataclass(frozen=True, kw_only=True)
class ClassificationData(ImageData):
    """Images, classes, sites and preprocessing."""

    classes: ClassesOption = None
    sampling: Annotated[
        Sampling,
        "training examples of an epoch at a site. uniform: each once; balanced: drawn with equal probability for every "
        "class that the site has; sqrt: with probability proportional to the square root of the class's size",
    ] = "uniform"

    def read(self) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows that this task uses, with class indices as `label`, and the label of each class by class name."""
        table = read_table(
            self.table, self.root, label_files=False, classes=label_values(self.classes), **self.image_options()
        )
        if self.classes is None and labels_are_files(table):
            first = table["label"][table["label"].str.contains(PATH_PATTERN).fillna(False)].iloc[0]
            raise ConfigError(
                f"table {self.table}: its labels look like files, such as {first!r}; classification needs a class for "
                "each image (masks need task=segmentation). If the labels are classes, list all in task.data.classes"
            )
        found = resolve_classes(table, self.classes, self.table)  # before labels are removed
        return encode_labels(self.select_rows(table), found), {name: label for label, name in found.items()}

    def labels(self) -> dict[str, str]:
        """The label of each class by its name, if `classes` has them."""
        return {str(name): str(label) for name, label in self.classes.items()} if isinstance(self.classes, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The keys under `task` of a classification of images."""

    name: Literal["classification"] = "classification"
    data: Annotated[ClassificationData, "images, sites and preparation"] = field(default_factory=ClassificationData)
    network: NetworkOption = field(default_factory=lambda: {"name": "resnet"})
    loss: Annotated[
        dict[str, Any], "cross_entropy (weight, label_smoothing), MONAI's focal or module:Name, and its arguments"
    ] = field(default_factory=lambda: {"name": "cross_entropy"})
    metrics: MetricNames = DEFAULT_METRICS
    batch_size: BatchSize = 16
    augment: Augmentation = ()

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        check_network_name(self.network)
        check_loss_name(self.loss, CLASSIFICATION_LOSSES)
        self._read()

    def build(self, progress: ProgressCallback | None = None, rows: pd.DataFrame | None = None) -> Task:
        """The task, with the data of every site prepared; `progress(done, total)` is called after each case.

        Labels are (N, 1), the class index of each example. `rows` replace the cases of the table, with
        absolute paths and class indices; `task.data.classes` then has the label of each class.
        Raises ConfigError for anything invalid in the configuration, the table or the images.
        """
        from raysim.tasks.labelled_images import build_labelled_images
        from raysim.tasks.losses import make_classification_loss

        table, classes, dims, score = self._read(rows)
        return build_labelled_images(
            self,
            table,
            dims=dims,
            loss=make_classification_loss(self.loss),
            score=score,
            outputs=classes,
            summary=class_counts(table, list(classes)),
            sampling=self.data.sampling,
            progress=progress,
        )

    def _read(self, rows: pd.DataFrame | None = None) -> tuple[pd.DataFrame, dict[str, str], int, ClassificationScore]:
        """The rows of the table, the label of each class, the number of spatial axes, and the metrics."""
        table, classes = self.data.read() if rows is None else (rows, self.data.labels())
        dims = self.data.dimensions(table)
        return table, classes, dims, ClassificationScore(self.metrics, self.batch_size, len(classes))
