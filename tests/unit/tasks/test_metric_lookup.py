"""Metrics by name: shipped ones, your own as `module:Name`, and what is refused before a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysim.core.contracts import Split
from raysim.core.errors import ConfigError, RunError
from raysim.tasks.classification_metrics import ClassificationScore
from raysim.tasks.segmentation_metrics import SegmentationScore

MODULE = """
import numpy as np

def missed(predicted, label, spacing):
    return int((label & ~predicted).sum()) * spacing[0]
missed.better = "lower"

def undefined(predicted, label, spacing):
    return None
undefined.better = "higher"

def infinite(predicted, label, spacing):
    return 1.0 if predicted.sum() == 12 else float("inf")
infinite.better = "higher"

def growing(predicted, label, spacing):
    return 1 if predicted.sum() == 12 else 2.0
growing.better = "lower"
growing.range = (0, 1)

def text(predicted, label, spacing):
    return "0.5"
text.better = "higher"

def of_numpy(predicted, label, spacing):
    return np.array([1.0000005], np.float32)
of_numpy.better = "higher"
of_numpy.range = [0, 1]

def wrong_range(predicted, label, spacing):
    return 1.0
wrong_range.better, wrong_range.range = "higher", (1, 0)

def named_range(predicted, label, spacing):
    return 1.0
named_range.better, named_range.range = "higher", "0 to 1"

def no_direction(predicted, label, spacing):
    return 1.0

def fails(predicted, label, spacing):
    raise KeyError("organ")
fails.better = "higher"

class Errors:
    better = "lower"
    def __call__(self, logits, labels):
        return float((logits.argmax(1) != labels).sum())
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def scores(*metrics: str) -> dict[str, float]:
    """Two cases of 4 x 4: classes 1 and 2 at the top rows, predicted as 1 everywhere."""
    labels = np.zeros((2, 1, 4, 4), np.uint8)
    labels[:, :, 0], labels[0, :, 1] = 1, 2
    split = Split(np.zeros((2, 1, 4, 4), np.float32), labels, np.arange(2), np.full((2, 2), 0.5))
    logits = torch.tensor([0.0, 1, 0])[None, :, None, None].expand(-1, -1, 4, 4)
    score = SegmentationScore(("background", "a", "b"), metrics)
    return score(lambda inputs: logits.expand(len(inputs), -1, -1, -1), split, torch.device("cpu"))


def test_an_imported_metric_is_computed_per_class_and_case() -> None:
    # Class a is never missed; class b misses 4 pixels of 0.5 mm in the one case that has it.
    assert scores("own_metrics:missed") == {"missed": 0.5, "missed_a": 0.0, "missed_b": 2.0}
    better = SegmentationScore(("background", "a"), ("own_metrics:missed", "dice")).better
    assert better == {"missed": "lower", "dice": "higher"}


def test_an_undefined_value_is_left_out() -> None:
    assert set(scores("own_metrics:undefined", "dice")) == {"dice", "dice_a", "dice_b"}


def test_a_class_is_a_metric_of_a_classification() -> None:
    score = ClassificationScore(("own_metrics:Errors",), classes=3)
    split = Split(np.eye(3, dtype=np.float32), np.array([[0], [2], [2]]), np.arange(3), np.ones((3, 0)))
    assert score(lambda inputs: inputs, split, torch.device("cpu")) == {"Errors": 1.0}
    assert score.better == {"Errors": "lower"}


def test_a_value_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RunError, match="metric infinite returned inf: expected a finite number"):
        scores("own_metrics:infinite")


def test_a_value_outside_the_range_is_an_error() -> None:
    with pytest.raises(RunError, match=r"metric growing returned 2: expected 0 to 1; correct .* growing\.range"):
        scores("own_metrics:growing")


def test_a_value_may_be_an_array_of_one_number_that_float32_rounds_up() -> None:
    assert scores("own_metrics:of_numpy")["of_numpy"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_metrics:no_direction", r"has better=None; expected 'higher' or 'lower'.*no_direction\.better = 'higher'"),
        ("own_metrics:fails", r"fails on an example: KeyError: 'organ'"),
        ("own_metrics:text", r"fails on an example: metric text returned '0.5': expected a finite number"),
        ("own_metrics:wrong_range", r"has range=\(1, 0\); expected .* \(0, 1\).*wrong_range\.range"),
        ("own_metrics:named_range", r"has range='0 to 1'; expected the lowest and the highest value"),
        ("own_metrics:missing", r"metric 'own_metrics:missing' cannot be imported"),
        ("dise", r"unknown metric 'dise' \(did you mean 'dice'\?\); valid: asd, dice, hd95, iou, precision"),
    ],
)
def test_what_cannot_work_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationScore(("background", "a"), (name,))


def test_a_shipped_metric_has_its_spelling_forgiven() -> None:
    assert SegmentationScore(("background", "a"), ("Dice",)).better == {"dice": "higher"}
    with pytest.raises(ConfigError, match=r"task.metrics=\[Dice, dice\]: expected each metric once, not dice twice"):
        SegmentationScore(("background", "a"), ("Dice", "dice"))
