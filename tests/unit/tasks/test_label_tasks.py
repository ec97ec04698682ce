"""The tasks with several labels or a number: labels, losses, scale, and refused keys."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.targets import Target
from raysim.tasks.losses import make_label_loss, make_number_loss
from raysim.tasks.multilabel import MultiLabel
from raysim.tasks.regression import Regression
from tests.support.wrong_files import write_data_sets

NETWORK = {"name": "classifier", "channels": [2]}


def task(kind: type, folder: Path, data: dict[str, Any], **keys: Any) -> Task:
    data = {"table": str(folder / "findings.csv"), "cache": str(folder / "cache"), **data}
    built: Task = TypeAdapter(kind).validate_python({"network": NETWORK, **keys, "data": data}).build()
    return built


@pytest.fixture
def findings(tmp_path: Path) -> Path:
    write_data_sets(tmp_path)
    return tmp_path


def test_several_labels(findings: Path) -> None:
    built = task(MultiLabel, findings, {"labels": ["effusion", "edema"]})
    assert (built.target, built.classes, list(built.class_values)) == (Target.LABELS, 2, ["effusion", "edema"])
    assert built.summary == "labels: effusion 4, edema 3 of 6 labelled cases"
    train = built.open("a").train
    assert train.labels is not None
    assert (train.labels.dtype, train.labels.tolist()) == (np.uint8, [[1, 0], [0, 1]])
    unlabelled = built.open("a").unlabelled
    assert unlabelled.labels is not None
    assert unlabelled.labels.shape == (0, 2)


def test_numbers_and_their_scale(findings: Path) -> None:
    built = task(Regression, findings, {"target": "age", "outside": ["b"]})
    assert (built.target, built.classes) == (Target.NUMBER, 1)
    assert built.computed == {"target_scale": (44.0, 3.5)}  # 40.5 and 47.5, the training rows of a
    train = built.open("a").train
    assert train.labels is not None
    assert (train.labels.dtype, train.labels.tolist()) == (np.float32, [[40.5], [47.5]])
    given = task(Regression, findings, {"target": "age", "target_scale": [50, 10]})
    assert given.computed == {}
    assert given.loss(torch.tensor([[0.0]]), torch.tensor([[70.0]])).item() == 4.0


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]], dtype=torch.uint8)
    weighted = make_label_loss({"name": "bce_with_logits", "pos_weight": [3, 1]})(logits, labels)
    assert weighted.item() == pytest.approx((3 * np.log(2) + np.log1p(np.exp(2))) / 2, rel=1e-6)
    focal = make_label_loss({"name": "focal", "gamma": 0})(logits, labels)
    assert focal.item() == pytest.approx((np.log(2) + np.log1p(np.exp(2))) / 2, rel=1e-6)
    outputs, numbers = torch.tensor([[1.0], [5.0]]), torch.tensor([[10.0], [30.0]])  # residuals 0 and 2 units of 10
    for name, expected in [("mse", 4 / 2), ("l1", 2 / 2), ("huber", 1.5 / 2)]:
        assert make_number_loss({"name": name}, (0.0, 10.0))(outputs, numbers).item() == expected


def refused(kind: type, folder: Path, data: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(ConfigError) as error, warnings.catch_warnings():
        task(kind, folder, data, **keys)
    return str(error.value)


def test_wrong_keys_are_refused(findings: Path) -> None:
    assert "task.data.labels is not set" in refused(MultiLabel, findings, {})
    assert "'edema' twice" in refused(MultiLabel, findings, {"labels": ["edema", "edema"]})
    assert "column age: expected 0 or 1" in refused(MultiLabel, findings, {"labels": ["edema", "age"]})
    assert "unknown loss 'mse'" in refused(MultiLabel, findings, {"labels": ["edema"]}, loss={"name": "mse"})
    assert "unknown metric 'dice'" in refused(Regression, findings, {"target": "age"}, metrics=["dice"])
    assert "(2, 1)" in refused(Regression, findings, {"target": "age"}, network={"name": "unet"})


def test_equal_numbers_are_refused(findings: Path) -> None:
    table = findings / "findings.csv"
    table.write_text(table.read_text().replace(",47.5", ",40.5"))
    message = refused(Regression, findings, {"target": "age", "outside": ["b"]})
    assert "the numbers of the training rows of inside sites are all 40.5, but a regression needs different" in message
