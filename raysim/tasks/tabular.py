"""Classification of the rows of a table, whose own columns are the features."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Gt, Len

from raysim.core.contracts import ProgressCallback, Task
from raysim.data.cache import cache_folder
from raysim.data.features import Chosen
from raysim.data.label_classes import CLASSES, classes, indexed
from raysim.data.table import READ, read_table
from raysim.data.tabular_sites import Standard, TabularRows, is_training_row, prepare_rows
from raysim.tasks.build_task import build_task
from raysim.tasks.classification_metrics import METRICS, ClassificationScore, ClassMetric
from raysim.tasks.losses import class_loss
from raysim.tasks.table_config import TableData


@dataclass(frozen=True, kw_only=True)
class TabularData(TableData):
    """Which columns, of which classes, at which sites, and how they are prepared."""

    features: Annotated[
        tuple[str, ...] | None, Len(1), "columns to learn from; by default all of numbers that mean nothing else"
    ] = None
    categorical: Annotated[tuple[str, ...], "columns of names or codes: a feature of 0 and 1 for each value"] = ()
    indicators: Annotated[bool, "features of 0 and 1 too for where a cell is missing"] = False
    standardise: Annotated[
        Standard,
        "whose training rows give medians for missing cells, means and deviations: the site's, or those of all inside "
        "sites, for which they would have to pool counts, sums, sums of squares and medians",
    ] = "per_site"
    classes: CLASSES = None

    def read(self) -> tuple[TabularRows, tuple[str, ...]]:
        """The rows that this task uses, and the names of the classes."""
        table = read_table(self.table, needs_image=False, check_files=False, label_files=False)
        found = classes(table, self.classes, self.table)  # before any label is taken away
        rows = self.shared_out(table)
        chosen = Chosen(self.features, self.categorical, self._meant(), self.indicators)
        features = chosen.features(rows, is_training_row(rows, self.outside), self.table)
        return TabularRows(indexed(rows, found), features, self.standardise, self.outside), tuple(found.values())

    def _meant(self) -> tuple[str, ...]:
        """The columns that say something else; what makes the sites would give them away."""
        spec = self.partition
        by = [spec.by] if spec is not None and spec.by is not None and spec.name != "dirichlet" else []
        return (*READ, "class", *by)


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """Classification of the rows of a table."""

    name: Literal["tabular"] = "tabular"
    data: Annotated[TabularData, "rows, sites and preparation"] = field(default_factory=TabularData)
    network: Annotated[
        dict[str, Any], "logistic, or mlp (hidden, norm: none | batch, dropout), or your own, with its arguments"
    ] = field(default_factory=lambda: {"name": "logistic"})
    loss: Annotated[dict[str, Any], "cross_entropy (weight, label_smoothing) or MONAI's focal, with its arguments"] = (
        field(default_factory=lambda: {"name": "cross_entropy"})
    )
    metrics: Annotated[tuple[ClassMetric, ...], Len(1), "what is judged, the main one first"] = METRICS
    batch_size: Annotated[int, Gt(0), "examples in a batch"] = 32

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task: inputs (N, F) float32, labels (N, 1), the index of each row's class.

        Raises ConfigError for anything wrong in the configuration or the table.
        """
        criterion, score = class_loss(self.loss), ClassificationScore(self.metrics, self.batch_size)
        rows, names = self.data.read()
        opener = prepare_rows(rows, partial(_rows, self.data), self.data.table, cache_folder(self.data.cache))
        if progress:
            progress(len(rows.table), len(rows.table))
        return build_task(
            self,
            open=opener,
            sizes=rows.sizes(),
            outside=self.data.outside,
            shape=(len(rows.features.names),),
            classes=len(names),
            loss=criterion,
            score=score,
            augment=None,
            per_voxel=False,
        )


def _rows(data: TabularData) -> TabularRows:
    return data.read()[0]
