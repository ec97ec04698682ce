"""FedDG-GA by hand: gaps, weights of the aggregation, and the limit FedAvg."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.fedavg import FedAvg
from algorithms.feddg_ga import FedDGGA, ServerState, adjusted
from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
POINTS = {"a": (1.0, 2.0), "b": (2.0, 2.0), "c": (3.0, 1.0)}


def three_sites() -> Any:
    """Site b has its point three times, so examples do not determine the weights."""
    return toy.task({"a": toy.A, "b": toy.B, "c": ((3, 1),)})


def run(algorithm: Any, rounds: int = 2, task: Any = None, cohort: float | int = 1.0) -> tuple[Any, LocalFleet]:
    task = task or three_sites()
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def residual(model: Any, site: str) -> float:
    x, y = POINTS[site]
    return float(model @ (x, 1) - y)


def test_weights_by_hand() -> None:
    # Mean gap 2; the centred gaps are -1, -1, 2, of which the largest is 2.
    shares = adjusted({"a": 0.25, "b": 0.25, "c": 0.5}, {"a": 1.0, "b": 1.0, "c": 4.0}, 0.1)
    assert shares == {"a": pytest.approx(0.2), "b": pytest.approx(0.2), "c": pytest.approx(0.6)}
    # A site without a gap keeps its weight before the division by the sum. Weights are clipped at 0.
    shares = adjusted({"a": 0.1, "b": 0.4, "c": 0.5}, {"a": 0.0, "c": 1.0}, 0.2)
    assert shares == {"a": 0, "b": pytest.approx(0.4 / 1.1), "c": pytest.approx(0.7 / 1.1)}


@pytest.mark.parametrize("gaps", [{}, {"a": 3.0}, {"a": 1.0, "b": 1.0}])
def test_weights_do_not_change_without_different_gaps(gaps: dict[str, float]) -> None:
    assert adjusted({"a": 0.3, "b": 0.7}, gaps, 0.2) == {"a": 0.3, "b": 0.7}


def test_three_rounds_equal_an_independent_computation() -> None:
    w, shares, losses = np.zeros(2), np.ones(3) / 3, np.zeros(3)
    for number in range(3):
        if number:
            gaps = np.array([residual(w, s) ** 2 / 2 for s in "abc"]) - losses
            centred = gaps - gaps.mean()
            shares = np.clip(shares + (1 - number / 3) * 0.6 / 3 * centred / abs(centred).max(), 0, 1)
            shares /= shares.sum()
        trained = [w - 0.1 * residual(w, s) * np.array([POINTS[s][0], 1]) for s in "abc"]
        losses = np.array([residual(model, s) ** 2 / 2 for model, s in zip(trained, "abc", strict=True)])
        w = shares @ np.array(trained)
    end, fleet = run(FedDGGA(step=0.6, **SGD), rounds=3)
    assert toy.line(end.state.model) == pytest.approx(tuple(w), rel=1e-5)
    assert list(end.state.shares.values()) == pytest.approx(list(shares), rel=1e-5)
    assert [fleet.client_state(s).loss for s in "abc"] == pytest.approx(list(losses), rel=1e-4)
    assert abs(shares - 1 / 3).max() > 0.1
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("b", "train")}
    assert metrics["gap"] == pytest.approx(gaps[1], rel=1e-4)


def test_with_step_0_and_equal_sites_it_is_fedavg() -> None:
    task = toy.task({"a": ((1, 2), (3, 1)), "b": ((2, 2), (0, 1))}, network=toy.Scaled, batch_size=2)
    ours, _ = run(FedDGGA(step=0.0, epochs=3, **SGD), rounds=3, task=task)
    assert ours.state.model == run(FedAvg(epochs=3, **SGD), rounds=3, task=task)[0].state


def test_the_gap_is_the_mean_over_images_in_batches_of_different_size() -> None:
    points: toy.Points = ((1, 2), (2, 2), (3, 1))
    end, fleet = run(FedDGGA(**SGD), rounds=1, task=toy.task({"a": points}, batch_size=2))
    w, b = toy.line(end.state.model)  # also the site's model, because there is one site
    expected = np.mean([(w * x + b - y) ** 2 / 2 for x, y in points])
    assert fleet.client_state("a").loss == pytest.approx(expected, rel=1e-5)


def test_a_site_that_is_not_sampled_keeps_its_weight_and_its_loss() -> None:
    task = three_sites()
    algorithm, fleet = FedDGGA(step=0.6, **SGD), LocalFleet(task, rounds=3)
    state, _ = algorithm.round(fleet, algorithm.init(task))
    before, kept = fleet.client_state("a"), state.shares["a"]
    state, _ = algorithm.round(fleet.at(["b"]), state)
    assert (fleet.client_state("a"), state.shares["a"]) == (before, kept)
    assert sum(state.shares.values()) == pytest.approx(1)


def test_a_cohort_whose_weights_are_0_counts_equally() -> None:
    task = three_sites()
    algorithm, fleet = FedDGGA(**SGD), LocalFleet(task, rounds=1)
    state = ServerState(algorithm.init(task).model, {"a": 0.0, "b": 0.0, "c": 1.0})
    state, _ = algorithm.round(fleet.at(["a", "b"]), state)
    assert toy.line(state.model) == pytest.approx((0.3, 0.2))  # of (0.2, 0.2) and (0.4, 0.2)


def test_the_model_and_the_gap_are_sent() -> None:
    traffic = run(FedDGGA(**SGD))[0].traffic
    assert set(traffic.down.values()) == {8}
    assert set(traffic.up.values()) == {16}
