"""FedDyn by hand. Site a has the point (1, 2), site b three times (2, 2); all start from w = b = 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.fedavg import FedAvg
from algorithms.feddyn import FedDyn
from algorithms.fedprox import FedProx
from raysim import LocalFleet, combine, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def run(rounds: int = 2, task: Any = None, algorithm: Any = None, **fields: Any) -> tuple[Any, LocalFleet]:
    task = task or toy.two_sites()
    fleet = LocalFleet(task, rounds=rounds)
    algorithm = algorithm or FedDyn(**{"lr": 0.1, "alpha": 1.0} | fields)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, evaluate_every=rounds)
    return end, fleet


def gradients(fleet: LocalFleet) -> dict[str, Any]:
    return {site: toy.line(fleet.client_state(site).gradient) for site in "ab"}


def test_the_first_round() -> None:
    # (0.2, 0.2) and (0.4, 0.2), mean (0.35, 0.2); h = -alpha times the mean change, so w is twice the mean.
    end, fleet = run(rounds=1)
    assert gradients(fleet) == {"a": pytest.approx((-0.2, -0.2)), "b": pytest.approx((-0.4, -0.2))}
    assert toy.line(end.state.drift) == pytest.approx((-0.35, -0.2))
    assert toy.line(end.state.model) == pytest.approx((0.7, 0.4))


def test_the_second_round() -> None:
    # a: r = -0.9, gradient (-0.9 + 0.2) (1, 1), to (0.77, 0.47). b: r = -0.2, gradient (-0.4 + 0.4, -0.2 + 0.2), stays.
    end, fleet = run()
    assert gradients(fleet) == {"a": pytest.approx((-0.27, -0.27)), "b": pytest.approx((-0.4, -0.2))}
    assert toy.line(end.state.drift) == pytest.approx((-0.3675, -0.2175))
    assert toy.line(end.state.model) == pytest.approx((0.7175 + 0.3675, 0.4175 + 0.2175))


def test_the_proximal_term_is_that_of_fedprox() -> None:
    # In the first round g_k = 0, so the mean of the sites' models is that of FedProx.
    end, _ = run(rounds=1, steps=3, alpha=2.0)
    average = combine([end.state.model, end.state.drift], [1, 1 / 2])
    prox = run(rounds=1, algorithm=FedProx(mu=2.0, steps=3, **SGD))[0].state
    assert toy.line(average) == pytest.approx(toy.line(prox))


@pytest.mark.slow
def test_it_converges_to_the_least_squares_of_all_points_and_fedavg_does_not() -> None:
    points: dict[str, toy.Points] = {"a": ((1, 0), (2, 0)), "b": ((1, 1), (3, 1), (2, 4))}
    x, y = np.array([point for of in points.values() for point in of], float).T
    minimum = np.linalg.lstsq(np.stack([x, np.ones(5)], 1), y, rcond=None)[0]
    found = {}
    for algorithm in (FedDyn(lr=0.1, alpha=0.3, steps=20), FedAvg(steps=20, **SGD)):
        found[type(algorithm)] = toy.line(run(rounds=150, task=toy.task(points), algorithm=algorithm)[0].state.model)
    assert found[FedDyn] == pytest.approx(minimum, abs=1e-3)
    assert np.abs(np.subtract(found[FedAvg], minimum)).max() > 0.1


def test_h_is_the_weighted_sum_of_all_gradients_in_any_cohort() -> None:
    task = toy.two_sites()
    algorithm, fleet = FedDyn(lr=0.1, alpha=1.0, steps=2), LocalFleet(task, rounds=3)
    state, _ = algorithm.round(fleet.at(["a"]), algorithm.init(task))
    assert toy.line(state.drift) == pytest.approx(np.array(toy.line(fleet.client_state("a").gradient)) / 4)
    before = fleet.client_state("a")
    state, _ = algorithm.round(fleet.at(["b"]), state)
    assert fleet.client_state("a") == before
    expected = np.array([1 / 4, 3 / 4]) @ np.array(list(gradients(fleet).values()))
    assert toy.line(state.drift) == pytest.approx(expected)


def test_only_the_model_is_sent() -> None:
    traffic = run()[0].traffic
    assert traffic.up == traffic.down == {"a": 8, "b": 8}


def test_buffers_are_averaged_as_in_fedavg() -> None:
    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=toy.Scaled)
    end, fleet = run(rounds=1, task=task)
    assert end.state.model["0.running_mean"].item() == pytest.approx((0.2 + 0.6) / 2)
    assert set(end.state.drift) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert fleet.client_state("a").buffers is None
    end, fleet = run(task=task, buffers="local")
    assert len(end.state.model.buffers) == 0
    assert fleet.client_state("b").buffers["0.running_mean"].item() == pytest.approx(0.1 * 6 + 0.9 * 0.6)
