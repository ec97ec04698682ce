"""Metrics of several labels and of numbers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raysim.core.contracts import Split
from raysim.tasks.label_metrics import LabelScore, average_precision
from raysim.tasks.number_metrics import NumberScore, r2

CPU = torch.device("cpu")


def split(outputs: list[list[float]], labels: Any, cases: list[int] | None = None) -> Split:
    """Examples whose inputs are the outputs of the network."""
    inputs = np.array(outputs, np.float32)
    return Split(inputs, np.array(labels), np.array(cases or range(len(inputs))), np.zeros((len(inputs), 0)))


def same(inputs: Tensor) -> Tensor:
    return inputs


def test_each_label_has_its_metrics_and_their_mean() -> None:
    # Label a: positives 2 and -1, negatives 1 and -2: 3 of 4 pairs are in order. Label b: no case has it.
    examples = split([[2, 1], [-1, -1], [1, -1], [-2, -1]], [[1, 0], [1, 0], [0, 0], [0, 0]])
    score = LabelScore(("a", "b"), ("auc", "f1", "accuracy"))
    found, by_case = score.score_cases(same, examples, CPU)
    assert found == {
        "auc": 0.75,
        "auc_a": 0.75,  # not defined for b
        "f1": 0.5,
        "f1_a": 0.5,  # TP 1, FP 1, FN 1
        "accuracy": (2 / 4 + 3 / 4) / 2,
        "accuracy_a": 2 / 4,
        "accuracy_b": 3 / 4,
    }
    assert by_case["accuracy"].tolist() == [0.5, 0.5, 0.5, 1.0]
    assert by_case["label_a"].tolist() == [1, 1, 0, 0]
    assert by_case["logit_b"].tolist() == [1, -1, -1, -1]
    assert list(score.better) == ["auc", "auc_a", "auc_b", "f1", "f1_a", "f1_b", "accuracy", "accuracy_a", "accuracy_b"]


def test_one_label_has_one_value_of_each_metric() -> None:
    found = LabelScore(("a",), ("brier",))(same, split([[0.0], [0.0]], [[1], [0]]), CPU)
    assert found == {"brier": 0.25}


def test_average_precision_by_hand() -> None:
    # In the order of the logits: 1, 0, 1; the precision at the two positives is 1 and 2/3.
    assert average_precision(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([3.0]), np.array([0])) is None


def test_numbers_are_evaluated_in_the_unit_of_the_label() -> None:
    examples = split([[0], [1], [2]], np.array([[50], [62], [68]], np.float32))
    score = NumberScore(offset=50, unit=10)
    found, by_case = score.score_cases(same, examples, CPU)
    assert by_case["prediction"].tolist() == [50, 60, 70]
    assert by_case["mae"].tolist() == [0, 2, 2]
    assert found["mae"] == pytest.approx(4 / 3)
    assert found["rmse"] == pytest.approx((8 / 3) ** 0.5)
    assert found["r2"] == pytest.approx(1 - 8 / 168)  # 168 = 10^2 + 2^2 + 8^2
    assert dict(score.better) == {"mae": "lower", "rmse": "lower", "r2": "higher"}


def test_slices_of_a_case_are_evaluated_by_the_mean_of_their_outputs() -> None:
    examples = split([[0], [2], [5]], np.array([[1], [1], [5]], np.float32), cases=[0, 0, 1])
    assert NumberScore(("mae",))(same, examples, CPU) == {"mae": 0.0}


def test_r2_of_equal_labels_is_not_defined() -> None:
    assert r2(np.array([1.0, 2.0]), np.array([3.0, 3.0])) is None
