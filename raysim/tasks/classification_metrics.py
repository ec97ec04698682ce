"""Classification metrics over the cases of a split: accuracy, balanced accuracy, AUC, F1; calibration: ECE, Brier.

Imports torch and MONAI where they are used, so that names of metrics are checked without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from raysim.core.contracts import CaseValues, Metrics, Predictor, Split
from raysim.tasks.metric_lookup import Direction, Metric, find_metrics

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
ECE_BINS = 15
DEFAULT_METRICS = ("accuracy", "balanced_accuracy", "auc", "f1")


def accuracy(logits: Array, labels: Array) -> float:
    """The fraction of cases, 0 to 1, whose class has the largest logit. logits (N, K), labels (N,)."""
    return float(_correct(logits, labels).mean())


def _correct(logits: Array, labels: Array) -> Array:
    correct: Array = logits.argmax(1) == labels
    return correct


def balanced_accuracy(logits: Array, labels: Array) -> float:
    """The recall averaged over the classes that have cases: 1 / K by chance."""
    predicted = logits.argmax(1)
    return float(np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)]))


def f1(logits: Array, labels: Array) -> float:
    """2 TP / (2 TP + FP + FN) of a class against all others, averaged over the classes that have cases."""
    predicted = logits.argmax(1)
    each = [
        2 * ((predicted == k) & (labels == k)).sum() / ((predicted == k).sum() + (labels == k).sum())
        for k in np.unique(labels)
    ]
    return float(np.mean(each))


def auc(logits: Array, labels: Array) -> float | None:
    """The area under the ROC curve of a class against all others, averaged over the classes that have cases.

    None if all cases are of one class, because the curve is then undefined.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    each = [roc_area(_log_odds(logits, k), labels == k) for k in present]
    return float(np.mean(each))


def roc_area(scores: Array, positive: Array) -> float:
    """The area under the ROC curve of scores (N,) for positive (N,), which has both values."""
    import torch
    from monai.metrics.rocauc import compute_roc_auc

    area: Any = compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(positive).int())
    return float(area)


def _log_odds(logits: Array, k: int) -> Array:
    """The log odds (N,) of class k. They have the order of the probabilities, but do not round to 1."""
    others = np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1)
    odds: Array = logits[:, k] - others
    return odds


def ece(logits: Array, labels: Array) -> float:
    """Expected calibration error: sum_b n_b / N |accuracy_b - confidence_b| over 15 bins of equal width.

    The confidence is the probability of the predicted class; bin b is ((b - 1) / 15, b / 15]. Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, Equation 3. https://arxiv.org/abs/1706.04599
    """
    confidence = softmax(logits, axis=1).max(1)
    excess = confidence - (logits.argmax(1) == labels)
    bins = np.ceil(confidence * ECE_BINS).astype(int)
    return float(np.abs(np.bincount(bins, excess)).sum() / len(labels))


def brier(logits: Array, labels: Array) -> float:
    """Brier score: the mean over the cases of sum_k (p_k - y_k)^2, with y one-hot: 0 is perfect, 2 the worst.

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """
    return float(_squared_error(logits, labels).mean())


def _squared_error(logits: Array, labels: Array) -> Array:
    error = softmax(logits, axis=1) - np.eye(logits.shape[1])[labels]
    squares: Array = np.square(error).sum(1)
    return squares


FRACTION = (0.0, 1.0)
METRICS = {
    "accuracy": Metric("accuracy", "higher", accuracy, FRACTION),
    "balanced_accuracy": Metric("balanced_accuracy", "higher", balanced_accuracy, FRACTION),
    "auc": Metric("auc", "higher", auc, FRACTION),
    "f1": Metric("f1", "higher", f1, FRACTION),
    "ece": Metric("ece", "lower", ece, FRACTION),
    "brier": Metric("brier", "lower", brier, (0.0, 2.0)),
}
# The values by case of the metrics that are means over cases.
CASE_VALUES: Mapping[Callable[..., Any], Callable[[Array, Array], Array]] = {accuracy: _correct, brier: _squared_error}


@dataclass
class ClassificationScore:
    """Scorer: each metric is computed over all cases of a split.

    Slices of one case are evaluated together, by the mean of their logits. A class without cases in the split is not
    evaluated.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    batch_size: int = 64
    classes: int = 2
    better: Mapping[str, Direction] = field(init=False)

    def __post_init__(self) -> None:
        example = np.eye(self.classes).repeat(2, axis=0), np.arange(self.classes).repeat(2)
        self._metrics = find_metrics(self.metrics, METRICS, example)
        self.better = {metric.name: metric.better for metric in self._metrics}

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        """The value of each metric that can be computed; empty for a split without examples or labels."""
        return self.score_cases(predict, split, device)[0]

    def score_cases(self, predict: Predictor, split: Split, device: torch.device) -> tuple[Metrics, CaseValues]:
        """The value of each metric that can be computed, and values by case.

        These are `label`, `logit_0`, `logit_1`, ..., from which every metric can be computed, and the metrics that are
        means over cases.
        """
        if not len(split) or split.labels is None:
            return {}, {}
        logits, rows = case_outputs(predict, split, self.batch_size, self.classes, device)
        labels = rows[:, 0].astype(np.int64)
        values = {metric.name: metric(logits, labels) for metric in self._metrics}
        means = [metric for metric in self._metrics if metric.function in CASE_VALUES]
        by_case = {metric.name: CASE_VALUES[metric.function](logits, labels) for metric in means}
        by_case |= {"label": labels, **{f"logit_{k}": logits[:, k] for k in range(logits.shape[1])}}
        return {name: value for name, value in values.items() if value is not None}, by_case


def case_outputs(
    predict: Predictor, split: Split, batch_size: int, outputs: int, device: torch.device
) -> tuple[Array, Array]:
    """The outputs (cases, K) of a predictor as float64, the mean over the examples of a case; the labels (cases, L)."""
    from raysim.tasks.prediction import predict_batches

    batches = predict_batches(predict, split, batch_size, outputs, device)
    found = np.concatenate([each.cpu().double().numpy() for each in batches])
    assert split.labels is not None
    _, first, case_index, sizes = np.unique(split.cases, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(first), outputs))
    np.add.at(sums, case_index, found)
    return sums / sizes[:, None], split.labels[first]
