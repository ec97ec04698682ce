"""Classification of the rows of a table, with its columns as features.

Imports torch and MONAI when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import Gt, Len

from raysim.core.contracts import ProgressCallback, Task
from raysim.data.cache import cache_folder
from raysim.data.label_classes import ClassesOption, class_counts, encode_labels, label_values, resolve_classes
from raysim.data.patient_columns import patient_columns
from raysim.data.table import COLUMNS, read_table
from raysim.data.tabular_features import FeatureSelection
from raysim.data.tabular_sites import StandardisationScope, TabularDataset, is_training_row, prepare_tabular_sites
from raysim.tasks.classification_metrics import DEFAULT_METRICS, ClassificationScore
from raysim.tasks.network_keys import NETWORK_KEYS, WEIGHTS_DOC
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

    def read(self) -> tuple[TabularDataset, tuple[str, ...]]:
        """The rows that this task uses, with their features, and the names of the classes."""
        table = read_table(
            self.table, needs_image=False, check_files=False, label_files=False, classes=label_values(self.classes)
        )
        found = resolve_classes(table, self.classes, self.table)  # before labels are removed
        rows = self.select_rows(table)
        selection = FeatureSelection(self.features, self.categorical, self._reserved_columns(table), self.indicators)
        features = selection.select(rows, is_training_row(rows, self.outside), self.table)
        dataset = TabularDataset(encode_labels(rows, found), features, self.standardise, self.outside)
        return dataset, tuple(found.values())

    def _reserved_columns(self, table: pd.DataFrame) -> tuple[str, ...]:
        """The columns that are not features. The column of the partition is one, because it would reveal the site."""
        spec = self.partition
        by = [spec.by] if spec is not None and spec.by is not None and spec.name != "dirichlet" else []
        return (*COLUMNS, *patient_columns(map(str, table.columns)), "class", *by)


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
    metrics: Annotated[
        tuple[str, ...], Len(1), "the main one first: names of `raysim list metrics`, or module:Name"
    ] = DEFAULT_METRICS
    batch_size: Annotated[int, Gt(0), "examples in a batch"] = 32

    def check(self) -> None:
        """Raises ConfigError for an error in the keys or the table. Reads no images."""
        self._read()

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task: inputs (N, F) float32, labels (N, 1), the class index of each row.

        Raises ConfigError for anything invalid in the configuration or the table.
        """
        from raysim.tasks.build_task import build_task
        from raysim.tasks.losses import make_classification_loss

        dataset, names, score = self._read()
        criterion = make_classification_loss(self.loss)
        load_dataset = partial(_load_dataset, self.data)
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
            classes=len(names),
            loss=criterion,
            score=score,
            augment=None,
            per_voxel=False,
            summary=class_counts(dataset.table, names),
            class_names=names,
        )

    def _read(self) -> tuple[TabularDataset, tuple[str, ...], ClassificationScore]:
        """The rows of the table with their features, the names of the classes, and the metrics."""
        dataset, names = self.data.read()
        return dataset, names, ClassificationScore(self.metrics, self.batch_size, len(names))


def _load_dataset(data: TabularData) -> TabularDataset:
    return data.read()[0]
