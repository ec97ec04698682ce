"""Metrics of a predicted number: MAE, RMSE and R2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from raysim.core.contracts import CaseValues, Metrics, Predictor, Split
from raysim.tasks.classification_metrics import Array, case_outputs
from raysim.tasks.metric_lookup import Direction, Metric, find_metrics

if TYPE_CHECKING:
    import torch

DEFAULT_METRICS = ("mae", "rmse", "r2")
MAE = "mae"


def mae(predicted: Array, labels: Array) -> float:
    """Mean absolute error, in the unit of the label. predicted (N,), labels (N,)."""
    return float(np.abs(predicted - labels).mean())


def rmse(predicted: Array, labels: Array) -> float:
    """Root of the mean squared error, in the unit of the label."""
    return float(np.sqrt(np.square(predicted - labels).mean()))


def r2(predicted: Array, labels: Array) -> float | None:
    """1 - (sum of squared errors) / (sum of squares around the mean label); None if all labels are equal."""
    total = np.square(labels - labels.mean()).sum()
    return float(1 - np.square(predicted - labels).sum() / total) if total > 0 else None


NOT_NEGATIVE, UP_TO_ONE = (0.0, float("inf")), (-float("inf"), 1.0)
METRICS = {
    MAE: Metric(MAE, "lower", mae, NOT_NEGATIVE),
    "rmse": Metric("rmse", "lower", rmse, NOT_NEGATIVE),
    "r2": Metric("r2", "higher", r2, UP_TO_ONE),
}


@dataclass
class NumberScore:
    """Scorer: each metric is computed over all cases of a split, from `offset + unit * output` of the network.

    Slices of one case are evaluated together, by the mean of their outputs.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    batch_size: int = 64
    offset: float = 0.0
    unit: float = 1.0
    better: Mapping[str, Direction] = field(init=False)

    def __post_init__(self) -> None:
        self._metrics = find_metrics(self.metrics, METRICS, (np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])))
        self.better = {metric.name: metric.better for metric in self._metrics}

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        """The value of each metric that can be computed; empty for a split without examples or labels."""
        return self.score_cases(predict, split, device)[0]

    def score_cases(self, predict: Predictor, split: Split, device: torch.device) -> tuple[Metrics, CaseValues]:
        """The value of each metric that can be computed; by case `label`, `prediction`, and the error as `mae`."""
        if not len(split) or split.labels is None:
            return {}, {}
        outputs, rows = case_outputs(predict, split, self.batch_size, 1, device)
        predicted, labels = self.offset + self.unit * outputs[:, 0], rows[:, 0].astype(np.float64)
        values = {metric.name: metric(predicted, labels) for metric in self._metrics}
        by_case = {MAE: np.abs(predicted - labels)} if METRICS[MAE] in self._metrics else {}
        by_case |= {"label": labels, "prediction": predicted}
        return {name: value for name, value in values.items() if value is not None}, by_case
