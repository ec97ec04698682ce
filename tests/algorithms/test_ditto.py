"""Ditto by hand: the global model equals FedAvg, (0.35, 0.2) after a round; personal models are pulled towards it."""

from __future__ import annotations

import math

import pytest

from algorithms.ditto import Ditto
from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from raysim import LocalFleet
from tests.support import toy
from tests.support.two_points import SGD, run


def personal(fleet: LocalFleet, site: str) -> tuple[float, float]:
    return toy.line(fleet.client_state(site).personal)


def test_the_pull_is_zero_in_the_first_step_and_not_in_the_second_round() -> None:
    # lam = 1. Round 1 from v = w = 0: (0.2, 0.2) and (0.4, 0.2). Round 2, w = (0.35, 0.2):
    # a: r = -1.6, gradient (-1.6 + 0.2 - 0.35, -1.6 + 0.2 - 0.2), to (0.375, 0.36).
    # b: r = -1, gradient (-2 + 0.4 - 0.35, -1 + 0.2 - 0.2), to (0.595, 0.3).
    _, first = run(Ditto(lam=1.0, **SGD), rounds=1)
    assert [personal(first, site) for site in "ab"] == [pytest.approx((0.2, 0.2)), pytest.approx((0.4, 0.2))]
    _, second = run(Ditto(lam=1.0, **SGD))
    assert [personal(second, site) for site in "ab"] == [pytest.approx((0.375, 0.36)), pytest.approx((0.595, 0.3))]


def test_the_pull_is_to_the_received_global_model() -> None:
    # Two steps of v in round 1, w = 0: a at (0.2, 0.2) has r = -1.6 and gradient -1.6 + 0.2.
    end, fleet = run(Ditto(lam=1.0, personal_epochs=2, **SGD), rounds=1)
    assert personal(fleet, "a") == pytest.approx((0.34, 0.34))
    assert toy.line(end.state) == pytest.approx((0.35, 0.2))


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_global_model_is_bit_identical_to_fedavg(lam: float) -> None:
    assert run(Ditto(lam=lam, epochs=3, **SGD))[0].state == run(FedAvg(epochs=3, **SGD))[0].state


def test_without_pull_each_site_trains_alone() -> None:
    _, fleet = run(Ditto(lam=0.0, epochs=3, **SGD), rounds=3)
    _, alone = run(LocalOnly(epochs=3, **SGD), rounds=3)
    assert all(fleet.client_state(site).personal == alone.client_state(site) for site in "ab")


def test_inside_sites_predict_with_personal_models_and_outside_sites_with_the_global_model() -> None:
    # Personal models after one step: (0.2, 0.2) at (1, 2) and (0.4, 0.2) at (2, 2). Global model: (0.35, 0.2).
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    end, _ = run(Ditto(**SGD), rounds=1, task=task)
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert values == {
        ("a", "distance"): pytest.approx(1.6),
        ("a", "distance@global"): pytest.approx(1.45),
        ("b", "distance"): pytest.approx(1.0),
        ("b", "distance@global"): pytest.approx(1.1),
        ("x", "distance"): pytest.approx(1.1),
        ("x", "distance@global"): pytest.approx(1.1),
    }


def test_a_site_that_was_never_sampled_predicts_with_the_global_model() -> None:
    end, fleet = run(Ditto(**SGD), rounds=1, cohort=1)
    (sampled,) = end.cohort
    (other,) = {"a", "b"} - {sampled}
    assert fleet.client_state(other) is None
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert values[other, "distance"] == values[other, "distance@global"]


def test_only_the_global_model_is_sent() -> None:
    traffic = run(Ditto(**SGD))[0].traffic
    assert traffic.up == traffic.down == {"a": 8, "b": 8}


def test_both_losses_and_the_distance_of_the_personal_model_are_reported() -> None:
    # In round 2 the global model at a starts with r = -1.45, the personal model with r = -1.6. The latter takes a step
    # with gradient (-1.6 + 0.1 (0.2 - 0.35), -1.6) to (0.3615, 0.36).
    end, _ = run(Ditto(**SGD))
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    distance = math.hypot(0.3615 - 0.35, 0.36 - 0.2) / math.hypot(0.35, 0.2)
    losses = {"loss": pytest.approx(1.45**2 / 2), "personal_loss": pytest.approx(1.6**2 / 2)}
    assert metrics == losses | {"personal_distance": pytest.approx(distance)}


PAIR: toy.Points = ((1, 0), (3, 1))
FAR: toy.Points = ((5, 0), (7, 1))


def test_personal_and_global_model_have_separate_buffers() -> None:
    # Both models get the same batch once per round. After round 1 the averaged mean is 0.4, the personal mean is 0.2.
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    end, fleet = run(Ditto(**SGD), task=task)
    assert fleet.client_state("a").personal["0.running_mean"].item() == pytest.approx(0.9 * 0.2 + 0.2)
    assert end.state["0.running_mean"].item() == pytest.approx(0.9 * 0.4 + (0.2 + 0.6) / 2)
    assert fleet.client_state("a").buffers is None
    end, fleet = run(Ditto(**SGD, buffers="local", personal_epochs=2), task=task)
    assert fleet.client_state("a").personal["0.num_batches_tracked"] == 4
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 2
    assert len(end.state.buffers) == 0
