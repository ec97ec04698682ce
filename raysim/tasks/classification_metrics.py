"""Judges classifications over the cases of a split: accuracy, balanced accuracy, area under the ROC, F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics.rocauc import compute_roc_auc

from raysim.core.contracts import Metrics, Predictor, Split
from raysim.core.errors import ConfigError
from raysim.tasks.segmentation_metrics import predict_batches

Array = np.ndarray[Any, np.dtype[Any]]
ClassMetric = Literal["accuracy", "balanced_accuracy", "auc", "f1"]
METRICS: tuple[ClassMetric, ...] = ("accuracy", "balanced_accuracy", "auc", "f1")
Measure = Callable[[Array, Array], float | None]


def accuracy(logits: Array, labels: Array) -> float:
    """The part of the cases, 0 to 1, whose class has the largest logit. logits (N, K), labels (N,)."""
    return float((logits.argmax(1) == labels).mean())


def balanced_accuracy(logits: Array, labels: Array) -> float:
    """The part of a class's cases that are found, averaged over the classes that have any: 1 / K by chance."""
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

    None where all cases are of one class, so that there is nothing to tell apart.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    each = [_area(_odds(logits, k), labels == k) for k in present]
    return float(np.mean(each))


def _area(scores: Array, positive: Array) -> float:
    area: Any = compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(positive).int())
    return float(area)


def _odds(logits: Array, k: int) -> Array:
    """The log odds (N,) of class k: in the order of its probabilities, which would round to 1 where it is sure."""
    others = np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1)
    odds: Array = logits[:, k] - others
    return odds


MEASURES: dict[ClassMetric, Measure] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "auc": auc,
    "f1": f1,
}


@dataclass
class ClassificationScore:
    """Scorer: each metric over all cases of a split at once, for one case has no balance and no curve.

    Slices of one case are judged together, by the mean of their logits. A class that no case of the split has is not
    judged there.
    """

    metrics: tuple[ClassMetric, ...] = METRICS
    batch_size: int = 64
    better: Mapping[str, Literal["higher", "lower"]] = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"task.metrics=[{', '.join(self.metrics)}]: expected each metric once; leave one out")
        self.better = dict.fromkeys(self.metrics, "higher")

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        """Each metric that can be judged; nothing for a split without examples or labels."""
        if not len(split) or split.labels is None:
            return {}
        batches = predict_batches(predict, split, self.batch_size, device)
        logits, labels = _of_cases(np.concatenate([each.cpu().double().numpy() for each in batches]), split)
        found = {name: MEASURES[name](logits, labels) for name in self.metrics}
        return {name: value for name, value in found.items() if value is not None}


def _of_cases(logits: Array, split: Split) -> tuple[Array, Array]:
    """The mean logits (cases, K) and the label (cases,) of each case."""
    assert split.labels is not None
    _, first, place, sizes = np.unique(split.cases, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(first), logits.shape[1]))
    np.add.at(sums, place, logits)
    return sums / sizes[:, None], split.labels[first, 0].astype(np.int64)
