"""Accuracy, balanced accuracy, F1, the area under the ROC and calibration, by hand."""

from __future__ import annotations

from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch

from raysim.core.contracts import Metrics, Split
from raysim.core.errors import ConfigError
from raysim.tasks.classification_metrics import (
    ClassificationScore,
    accuracy,
    auc,
    balanced_accuracy,
    brier,
    ece,
    f1,
)

CPU = torch.device("cpu")


def logits_of(predicted: list[int], classes: int = 3) -> np.ndarray:
    """Logits (N, classes) that predict these classes."""
    return np.eye(classes)[predicted]


def score(logits: np.ndarray, labels: list[int] | None, cases: list[int] | None = None, **options: object) -> Metrics:
    """The metrics of a network that returns `logits`, in batches of two."""
    number = len(logits)
    given = None if labels is None else np.array(labels, np.uint8).reshape(-1, 1)
    split = Split(np.float32(logits), given, np.array(cases or range(number)), np.zeros((number, 0)))
    return ClassificationScore(batch_size=2, classes=logits.shape[1], **options)(lambda inputs: inputs, split, CPU)  # type: ignore[arg-type]


def test_four_of_six_cases_are_correct() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    logits = logits_of([0, 0, 1, 1, 1, 0])
    assert accuracy(logits, labels) == pytest.approx(4 / 6)
    # The recalls are 2 of 3, 2 of 2 and 0 of 1.
    assert balanced_accuracy(logits, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    # TP, FP, FN: 2, 1, 1; then 2, 1, 0; then 0, 0, 1.
    assert f1(logits, labels) == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)


def test_a_class_without_cases_is_not_averaged_in() -> None:
    labels, logits = np.array([0, 0, 1, 1]), logits_of([0, 2, 1, 1])
    assert balanced_accuracy(logits, labels) == pytest.approx((1 / 2 + 1) / 2)
    assert f1(logits, labels) == pytest.approx((2 / 3 + 1) / 2)


def test_a_pair_of_equal_scores_counts_half() -> None:
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[0, 0.1], [0, 0.4], [0, 0.4], [0, 0.8]])
    # The pairs of a 1 and a 0: 0.4 over 0.1, 0.4 with 0.4, 0.8 over both.
    assert auc(logits, labels) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_the_area_is_the_mean_over_each_class_against_the_others() -> None:
    labels = np.array([0, 0, 1, 2])
    logits = np.array([[2.0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0]])
    # Log odds of class 0 are 2 - log 2, -log(e + 1), -log(e^2 + 1) and 1 - log 2: the first beats both others, the
    # second one of them. Of class 1 the third is the largest. Of class 2 the fourth beats two and equals the second.
    assert auc(logits, labels) == pytest.approx((3 / 4 + 1 + 2.5 / 3) / 3)


def test_the_area_leaves_out_a_class_without_cases_and_is_that_of_probabilities() -> None:
    labels = np.array([0, 1, 1])
    probabilities = np.array([[0.5, 0.2, 0.3], [0.4, 0.25, 0.35], [0.1, 0.6, 0.3]])
    # Class 0: 0.5 over 0.4 and 0.1. Class 1: 0.25 and 0.6 over 0.2. Class 2 has no case.
    assert auc(np.log(probabilities), labels) == 1
    # By the logit of class 0 alone, the second case would be first. The log odds are 0 - log(1) and 1 - log(2 e^4).
    assert auc(np.array([[0.0, log(0.5), log(0.5)], [1.0, 4.0, 4.0]]), np.array([0, 1])) == 1


def test_nearly_certain_predictions_still_have_an_order() -> None:
    assert auc(np.array([[0.0, 60], [0, 80]]), np.array([0, 1])) == 1


@pytest.mark.filterwarnings("error")
def test_metrics_that_cannot_be_computed_are_left_out() -> None:
    assert score(logits_of([1, 0]), [1, 1]) == {"accuracy": 0.5, "balanced_accuracy": 0.5, "f1": pytest.approx(2 / 3)}
    assert score(logits_of([1, 0]), None) == {}
    assert score(np.zeros((0, 3)), []) == {}


def test_slices_of_a_case_are_evaluated_together() -> None:
    # Case 0: the mean of (3, 0) and (0, 1) is (1.5, 0.5), so class 0. Case 1: class 1. Both are correct.
    logits = np.array([[3.0, 0], [0, 1], [0, 1]])
    assert score(logits, [0, 0, 1], cases=[0, 0, 1], metrics=("accuracy", "auc")) == {"accuracy": 1, "auc": 1}
    assert score(logits, [0, 0, 1], metrics=("accuracy",)) == {"accuracy": pytest.approx(2 / 3)}


def test_calibration_of_four_cases() -> None:
    # Confidences 0.9, 0.92, 0.6, 0.6: the first two share bin 14, (0.867, 0.933]; the others bin 9, (0.533, 0.6].
    probabilities = np.array([[0.9, 0.1], [0.08, 0.92], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1])
    assert ece(np.log(probabilities), labels) == pytest.approx((abs(1 - 1.82) + abs(1 - 1.2)) / 4)
    # 2 (1 - p)^2 with the probability p of the label: 0.9, 0.08, 0.6, 0.4
    assert brier(np.log(probabilities), labels) == pytest.approx(2 * (0.1**2 + 0.92**2 + 0.4**2 + 0.6**2) / 4)


def test_calibration_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(500, 4)), rng.integers(0, 4, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert ece(logits, labels) == pytest.approx(expected)
    squares = [
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(probabilities, labels, strict=True)
    ]
    assert brier(logits, labels) == pytest.approx(np.mean(squares))


def test_calibration_of_certain_predictions() -> None:
    logits = np.array([[1000.0, -1000], [1000, -1000]])
    assert ece(logits, np.array([0, 0])) == brier(logits, np.array([0, 0])) == 0
    assert ece(logits, np.array([1, 1])) == 1
    assert brier(logits, np.array([1, 1])) == 2
    assert ClassificationScore(("ece", "brier")).better == {"ece": "lower", "brier": "lower"}


def test_the_first_metric_is_the_main_one_and_all_are_better_when_higher() -> None:
    assert list(ClassificationScore(("f1", "auc")).better.items()) == [("f1", "higher"), ("auc", "higher")]
    assert next(iter(ClassificationScore().better)) == "accuracy"
    with pytest.raises(ConfigError, match=r"task\.metrics=\[f1, f1\]: expected each metric once"):
        ClassificationScore(("f1", "f1"))
