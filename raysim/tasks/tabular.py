"""Classification of the rows of a table, with its columns as features.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import Len

from raysim.core.contracts import ProgressCallback, Task
from raysim.data.cache import cache_folder
from raysim.data.label_classes import ClassesOption, class_counts, encode_labels, label_values, resolve_classes
from raysim.data.table import read_table
from raysim.data.tabular_features import FeatureSelection, reserved_columns
from raysim.data.tabular_sites import StandardisationScope, TabularDataset, is_training_row, prepare_tabular_sites
from raysim.tasks.classification_metrics import DEFAULT_METRICS, ClassificationScore
from raysim.tasks.library_names import CLASSIFICATION_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NETWORK_KEYS, WEIGHTS_DOC
from raysim.tasks.shared_keys import BatchSize, MetricNames
from raysim.tasks.table_config import TableData


@dataclass(frozen=True, kw_only=True)
class TabularData(TableData):
    """Features, classes, sites and preprocessing."""

    features: Annotated[
        tuple[str, ...] | None, Len(1), "feature columns; by default all numeric columns except site, label and others"
    ] = None
    categorical: Annotated[tuple[str, ...], "columns of names or codes, encoded one-hot"] = ()
    indicators: Annotated[
        bool, "for each column with missing cells, a further feature: 1 if the cell is missing, else 0"
    ] = False
    standardise: Annotated[
        StandardisationScope,
        "training rows for means, deviations, and medians (of missing cells). per_site: those of the site, but those "
        "of all inside sites for a column that is empty or constant at the site; global: those of all inside sites, "
        "so real sites would have to share counts, sums, sums of squares and medians",
    ] = "per_site"
    classes: ClassesOption = None

    def read(
        self, rows: pd.DataFrame | None = None, reference: TabularData | None = None
    ) -> tuple[TabularDataset, dict[str, str]]:
        """The rows that this task uses, with their features, and the label of each class by its name.

        `rows` are used instead of those of the table. With the data of a run as `reference`, features, statistics and
        classes are those of that run.
        """
        fitted = None if reference is None else reference.read()
        table = self._read_table() if rows is None else rows
        if fitted is None:
            found = resolve_classes(table, self.classes, self.table)  # before labels are removed
            selected = self.select_rows(table)
            features = self.selection(table).select(selected, is_training_row(selected, self.outside), self.table)
        else:
            found = resolve_classes(table, dict(fitted[1]), self.table)
            selected, features = self.select_rows(table), fitted[0].features
            features.check(selected, self.table)
        encoded = encode_labels(selected, found)
        dataset = TabularDataset(encoded, features, self.standardise, self.outside, fitted[0] if fitted else None)
        return dataset, {name: label for label, name in found.items()}

    def _read_table(self) -> pd.DataFrame:
        return read_table(
            self.table, needs_image=False, check_files=False, label_files=False, classes=label_values(self.classes)
        )

    def selection(self, table: pd.DataFrame) -> FeatureSelection:
        """The columns to use as features. The column of the partition is excluded, because it would reveal the site."""
        spec = self.partition
        by = [spec.by] if spec is not None and spec.by is not None and spec.name != "dirichlet" else []
        return FeatureSelection(self.features, self.categorical, (*reserved_columns(table), *by), self.indicators)


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """The keys under `task` of a classification of tabular rows."""

    name: Literal["tabular"] = "tabular"
    data: Annotated[TabularData, "rows, sites and preparation"] = field(default_factory=TabularData)
    network: Annotated[
        dict[str, Any],
        NETWORK_KEYS,
        "logistic, mlp (hidden, norm: none | batch, dropout) or module:Class, and its arguments" + WEIGHTS_DOC,
    ] = field(default_factory=lambda: {"name": "logistic"})
    loss: Annotated[
        dict[str, Any], "cross_entropy (weight, label_smoothing), MONAI's focal or module:Name, and its arguments"
    ] = field(default_factory=lambda: {"name": "cross_entropy"})
    metrics: MetricNames = DEFAULT_METRICS
    batch_size: BatchSize = 32

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        check_network_name(self.network)
        check_loss_name(self.loss, CLASSIFICATION_LOSSES)
        self._read()

    def build(
        self,
        progress: ProgressCallback | None = None,
        rows: pd.DataFrame | None = None,
        reference: TabularData | None = None,
    ) -> Task:
        """The task: inputs (N, F) float32, labels (N, 1), the class index of each row.

        `rows` and `reference` are as in `TabularData.read`.
        Raises ConfigError for anything invalid in the configuration or the table.
        """
        from raysim.tasks.build_task import build_task
        from raysim.tasks.losses import make_classification_loss

        dataset, classes, score = self._read(rows, reference)
        criterion = make_classification_loss(self.loss)
        load_dataset = partial(_load_dataset, self.data, rows, reference)
        sites = prepare_tabular_sites(dataset, load_dataset, self.data.table, cache_folder(self.data.cache))
        if progress:
            progress(len(dataset.table), len(dataset.table))
        return build_task(
            self,
            open=sites,
            case_names=sites.case_names,
            sizes=dataset.split_sizes(),
            outside=self.data.outside,
            shape=(len(dataset.features.names),),
            classes=len(classes),
            loss=criterion,
            score=score,
            augment=None,
            per_voxel=False,
            summary=class_counts(dataset.table, list(classes)),
            class_values=classes,
        )

    def _read(
        self, rows: pd.DataFrame | None = None, reference: TabularData | None = None
    ) -> tuple[TabularDataset, dict[str, str], ClassificationScore]:
        """The rows of the table with their features, the label of each class, and the metrics."""
        dataset, classes = self.data.read(rows, reference)
        return dataset, classes, ClassificationScore(self.metrics, self.batch_size, len(classes))


def _load_dataset(data: TabularData, rows: pd.DataFrame | None, reference: TabularData | None) -> TabularDataset:
    return data.read(rows, reference)[0]
