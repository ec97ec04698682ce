"""What the methods of an algorithm return: one line states what was expected and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from raysim import Model, PredictionSet
from raysim.core.errors import RunError
from raysim.federation.return_checks import check_predictor, check_round, check_state

MODEL = Model.of({"a": np.zeros(1), "b": np.zeros(1)})  # two tensors: it could be unpacked as state and metrics


@dataclass(frozen=True)
class State:
    model: Model | None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (MODEL, "Median.round must return the state and a dictionary of metrics, not Model; write return state, {}"),
        ((MODEL,), "not a tuple of 1"),
        ((MODEL, None), "not a tuple of 2"),
        (None, "not NoneType"),
        ((MODEL, {"loss": "low"}), r"the metrics of Median.round\['loss'\] is 'low': expected a single number"),
        (
            (MODEL, {"mine": float("nan")}),
            r"the metrics of Median.round\['mine'\] is nan: expected a finite number",
        ),
        ((MODEL, {1: 0.5}), "the metrics of Median.round has the name 1: expected text"),
        (({"a": np.zeros(1)}, {}), "Median.round must return a Model, such as weights.net., or a frozen dataclass"),
    ],
)
def test_a_wrong_result_of_a_round_is_refused(result: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_round(result, "Median")


def test_a_state_is_a_model_or_has_one_or_none() -> None:
    assert check_round((MODEL, {"loss": np.float32(0.5)}), "Median")[0] is MODEL
    for state in (MODEL, State(MODEL), State(None), SimpleNamespace(model=None)):
        check_state(state, "Median.init")
    for state in (None, nn.Linear(1, 1), nn.Linear(1, 1).state_dict(), SimpleNamespace(model={})):
        with pytest.raises(RunError, match=r"Median\.init must return a Model"):
            check_state(state, "Median.init")


def test_a_predictor_can_be_called() -> None:
    check_predictor(None, "Median")
    check_predictor(nn.Linear(1, 1), "Median")
    with pytest.raises(RunError, match=r"Median\.predictor must return a network or a function that returns"):
        check_predictor(MODEL, "Median")


def test_a_network_with_active_dropout_is_refused() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    for predictor in (net, PredictionSet(nn.Linear(1, 1), {"local": net})):
        with pytest.raises(RunError, match=r"Median\.predictor returned a network in training mode"):
            check_predictor(predictor, "Median")
    check_predictor(net.eval(), "Median")
    check_predictor(nn.Sequential(nn.BatchNorm1d(1)), "Median")  # a method may use the statistics of the batch


def test_the_name_of_the_global_model_is_refused_for_another_predictor() -> None:
    with pytest.raises(RunError, match=r"Median\.predictor: 'global' is the name of the global model"):
        check_predictor(PredictionSet(nn.Linear(1, 1), {"global": nn.Linear(1, 1)}), "Median")
