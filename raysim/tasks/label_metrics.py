"""Metrics of each of several labels: AUC, average precision, F1, accuracy, Brier score.

Imports torch and MONAI where they are used, so that names of metrics are checked without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from raysim.core.contracts import CaseValues, Metrics, Predictor, Split
from raysim.tasks.classification_metrics import FRACTION, Array, case_outputs, roc_area
from raysim.tasks.metric_lookup import Direction, Metric, find_metrics

if TYPE_CHECKING:
    import torch

DEFAULT_METRICS = ("auc", "f1")


def auc(logits: Array, labels: Array) -> float | None:
    """The area under the ROC curve of a label; None if all cases have the same value. logits (N,), labels (N,)."""
    return roc_area(logits, labels == 1) if 0 < labels.sum() < len(labels) else None


def average_precision(logits: Array, labels: Array) -> float | None:
    """The area under the precision-recall curve of a label, by steps; None if no case has the label."""
    if not labels.any():
        return None
    import torch
    from monai.metrics.average_precision import compute_average_precision

    value: Any = compute_average_precision(torch.from_numpy(logits), torch.from_numpy(labels).int())
    return float(value)


def f1(logits: Array, labels: Array) -> float | None:
    """2 TP / (2 TP + FP + FN) of a label, predicted for logits above 0; None if no case has the label."""
    predicted = logits > 0
    return float(2 * (predicted & (labels == 1)).sum() / (predicted.sum() + labels.sum())) if labels.any() else None


def accuracy(logits: Array, labels: Array) -> float:
    """The fraction of cases whose label is predicted, for logits above 0."""
    return float(_correct(logits, labels).mean())


def brier(logits: Array, labels: Array) -> float:
    """Brier score of a label: the mean over the cases of (p - y)^2; 0 is perfect, 1 the worst."""
    return float(_squared_error(logits, labels).mean())


def _correct(logits: Array, labels: Array) -> Array:
    correct: Array = (logits > 0) == (labels == 1)
    return correct


def _squared_error(logits: Array, labels: Array) -> Array:
    squares: Array = np.square(expit(logits) - labels)
    return squares


METRICS = {
    "auc": Metric("auc", "higher", auc, FRACTION),
    "average_precision": Metric("average_precision", "higher", average_precision, FRACTION),
    "f1": Metric("f1", "higher", f1, FRACTION),
    "accuracy": Metric("accuracy", "higher", accuracy, FRACTION),
    "brier": Metric("brier", "lower", brier, FRACTION),
}
# The values by case (N, L) of the metrics that are means over cases.
CASE_VALUES: Mapping[Callable[..., Any], Callable[[Array, Array], Array]] = {accuracy: _correct, brier: _squared_error}


@dataclass
class LabelScore:
    """Scorer: `auc` is the mean over the labels, `auc_<label>` that of one label; the same for the other metrics.

    A metric that is not defined for a label is left out, also from the mean. Slices of one case are evaluated
    together, by the mean of their logits.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...] = DEFAULT_METRICS
    batch_size: int = 64
    better: Mapping[str, Direction] = field(init=False)

    def __post_init__(self) -> None:
        self._metrics = find_metrics(self.metrics, METRICS, (np.array([-1.0, -1.0, 1.0, 1.0]), np.array([0, 0, 1, 1])))
        suffixes = ["", *(f"_{name}" for name in self.labels if len(self.labels) > 1)]
        self.better = {f"{metric.name}{suffix}": metric.better for metric in self._metrics for suffix in suffixes}

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        """The value of each metric that can be computed; empty for a split without examples or labels."""
        return self.score_cases(predict, split, device)[0]

    def score_cases(self, predict: Predictor, split: Split, device: torch.device) -> tuple[Metrics, CaseValues]:
        """The value of each metric that can be computed, and values by case.

        These are `label_<label>` and `logit_<label>`, from which every metric can be computed, and the metrics that
        are means over cases.
        """
        if not len(split) or split.labels is None:
            return {}, {}
        logits, rows = case_outputs(predict, split, self.batch_size, len(self.labels), device)
        labels = rows.astype(np.int64)
        by_case = {
            metric.name: CASE_VALUES[metric.function](logits, labels).mean(1)
            for metric in self._metrics
            if metric.function in CASE_VALUES
        }
        for number, name in enumerate(self.labels):
            by_case |= {f"label_{name}": labels[:, number], f"logit_{name}": logits[:, number]}
        return dict(self._values(logits, labels)), by_case

    def _values(self, logits: Array, labels: Array) -> Iterator[tuple[str, float]]:
        """The values that are defined, with the names in `better`."""
        for metric in self._metrics:
            each = {name: metric(logits[:, k], labels[:, k]) for k, name in enumerate(self.labels)}
            defined = {name: value for name, value in each.items() if value is not None}
            if defined:
                yield metric.name, float(np.mean(list(defined.values())))
            if len(self.labels) > 1:
                yield from ((f"{metric.name}_{name}", value) for name, value in defined.items())
