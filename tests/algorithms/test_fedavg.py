"""FedAvg by hand. Site a has the point (1, 2), site b three times (2, 2); all start from w = b = 0."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms.fedavg import FedAvg
from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def last(task: Any = None, rounds: int = 1, **fields: Any) -> Any:
    algorithm = FedAvg(**SGD | fields)
    task = task or toy.two_sites()
    return list(federate(algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds))[-1]


def test_one_step_is_the_weighted_mean() -> None:
    # r = -2 at both: a goes to (0.2, 0.2), b to (0.4, 0.2); weighted 1 : 3, w = (0.2 + 1.2) / 4.
    assert toy.line(last().state) == pytest.approx((0.35, 0.2))


def test_two_local_steps_drift_apart() -> None:
    # a: r = 0.4 - 2, to (0.36, 0.36); b: r = 0.8 + 0.2 - 2 = -1, to (0.6, 0.3).
    assert toy.line(last(steps=2).state) == pytest.approx(((0.36 + 1.8) / 4, (0.36 + 0.9) / 4))


def test_two_rounds_start_from_the_mean() -> None:
    # From (0.35, 0.2): a: r = -1.45, to (0.495, 0.345); b: r = 0.9 - 2 = -1.1, to (0.57, 0.31).
    assert toy.line(last(rounds=2).state) == pytest.approx(((0.495 + 1.71) / 4, (0.345 + 0.93) / 4))


def test_the_loss_is_the_mean_over_examples() -> None:
    # Both start at 2^2 / 2; in two steps a ends at 1.6^2 / 2 and b at 1^2 / 2.
    assert last().loss == pytest.approx(2.0)
    assert last(steps=2).loss == pytest.approx((1 * (2 + 1.28) / 2 + 3 * (2 + 0.5) / 2) / 4)


def test_bytes_are_the_model_up_and_down() -> None:
    traffic = last().traffic
    assert traffic.up == traffic.down == {"a": 8, "b": 8}
    assert traffic.between == {"a": 0, "b": 0}


def test_all_sites_are_scored_with_the_global_model() -> None:
    # With (0.35, 0.2): |0.55 - 2| at a, |0.9 - 2| at b and at the outside site x.
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    scores = {(s.site, s.role, s.metric): s.value for s in last(task).scores if s.split == "test"}
    assert scores == {
        (site, role, metric): pytest.approx(value)
        for site, role, value in (("a", "inside", 1.45), ("b", "inside", 1.1), ("x", "outside", 1.1))
        for metric in ("distance", "distance@global")
    }


PAIR: toy.Points = ((1, 0), (3, 1))  # mean 2, unbiased variance 2
FAR: toy.Points = ((5, 0), (7, 1), (5, 0), (7, 1))  # mean 6


def test_averaged_statistics_are_weighted_by_examples() -> None:
    # 0.1 * 2 at a with 2 examples and 0.1 * 6 at b with 4 examples.
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    state = last(task).state
    assert state["0.running_mean"].item() == pytest.approx((2 * 0.2 + 4 * 0.6) / 6)
    assert state["0.num_batches_tracked"] == 1


def test_local_statistics_are_never_sent() -> None:
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    fleet = LocalFleet(task, rounds=2)
    algorithm = FedAvg(**SGD, buffers="local")
    *_, end = federate(algorithm, task, fleet, rounds=2)
    assert set(end.state) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert end.traffic.up == end.traffic.down == {"a": 16, "b": 16}
    means = {site: fleet.client_state(site)["0.running_mean"].item() for site in "ab"}
    assert means == pytest.approx({"a": 0.1 * 2 + 0.9 * 0.2, "b": 0.1 * 6 + 0.9 * 0.6})


def test_local_statistics_give_a_personal_model() -> None:
    # The site's predictor uses the local statistics; the global model uses those of the batch.
    task = toy.task({"a": PAIR, "x": PAIR}, outside=["x"], network=toy.Scaled)
    values = {(s.site, s.metric): s.value for s in last(task, buffers="local").scores if s.split == "test"}
    assert values["a", "distance"] != values["a", "distance@global"]
    assert values["x", "distance"] == values["x", "distance@global"] == values["a", "distance@global"]
