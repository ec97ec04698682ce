"""Ditto by hand: the global model is FedAvg's, (0.35, 0.2) after a round; each site's own is pulled towards it."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms.ditto import Ditto
from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def run(algorithm: Any, rounds: int = 2, task: Any = None, cohort: float | int = 1.0) -> tuple[Any, LocalFleet]:
    task = task or toy.two_sites()
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def personal(fleet: LocalFleet, site: str) -> tuple[float, float]:
    return toy.line(fleet.client_state(site).personal)


def test_the_first_step_is_not_pulled_and_the_second_rounds_is() -> None:
    # lam = 1. Round 1 from v = w = 0: (0.2, 0.2) and (0.4, 0.2). Round 2, w = (0.35, 0.2):
    # a: r = -1.6, gradient (-1.6 + 0.2 - 0.35, -1.6 + 0.2 - 0.2), to (0.375, 0.36).
    # b: r = -1, gradient (-2 + 0.4 - 0.35, -1 + 0.2 - 0.2), to (0.595, 0.3).
    _, first = run(Ditto(lam=1.0, **SGD), rounds=1)
    assert [personal(first, site) for site in "ab"] == [pytest.approx((0.2, 0.2)), pytest.approx((0.4, 0.2))]
    _, second = run(Ditto(lam=1.0, **SGD))
    assert [personal(second, site) for site in "ab"] == [pytest.approx((0.375, 0.36)), pytest.approx((0.595, 0.3))]


def test_the_pull_is_to_the_model_that_came_not_to_the_one_trained_here() -> None:
    # Two steps of v in round 1, w = 0: a at (0.2, 0.2) has r = -1.6 and gradient -1.6 + 0.2.
    end, fleet = run(Ditto(lam=1.0, personal_epochs=2, **SGD), rounds=1)
    assert personal(fleet, "a") == pytest.approx((0.34, 0.34))
    assert toy.line(end.state) == pytest.approx((0.35, 0.2))


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_global_model_is_fedavgs_to_the_bit(lam: float) -> None:
    assert run(Ditto(lam=lam, epochs=3, **SGD))[0].state == run(FedAvg(epochs=3, **SGD))[0].state


def test_without_pull_each_site_trains_alone() -> None:
    _, fleet = run(Ditto(lam=0.0, epochs=3, **SGD), rounds=3)
    _, alone = run(LocalOnly(epochs=3, **SGD), rounds=3)
    assert all(fleet.client_state(site).personal == alone.client_state(site) for site in "ab")


def test_inside_sites_answer_with_their_own_model_and_outside_ones_with_the_global() -> None:
    # Own after one step: (0.2, 0.2) at (1, 2) and (0.4, 0.2) at (2, 2). Global (0.35, 0.2).
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


def test_a_site_that_was_not_asked_keeps_its_model_and_a_new_one_has_the_global() -> None:
    end, fleet = run(Ditto(**SGD), rounds=1, cohort=1)
    (sampled,) = end.cohort
    (other,) = {"a", "b"} - {sampled}
    assert fleet.client_state(other) is None
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert values[other, "distance"] == values[other, "distance@global"]


def test_only_the_global_model_travels() -> None:
    traffic = run(Ditto(**SGD))[0].traffic
    assert traffic.up == traffic.down == {"a": 8, "b": 8}


def test_both_losses_are_told() -> None:
    # In round 2 a's global copy starts at r = -1.45, its own model at r = -1.6.
    end, _ = run(Ditto(**SGD))
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    assert metrics == {"loss": pytest.approx(1.45**2 / 2), "personal_loss": pytest.approx(1.6**2 / 2)}


PAIR: toy.Points = ((1, 0), (3, 1))
FAR: toy.Points = ((5, 0), (7, 1))


def test_the_own_model_has_buffers_of_its_own_beside_those_of_the_global_one() -> None:
    # Both see the same batch once a round. The averaged ones are 0.4 after round 1; the own go on from 0.2.
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    end, fleet = run(Ditto(**SGD), task=task)
    assert fleet.client_state("a").personal["0.running_mean"].item() == pytest.approx(0.9 * 0.2 + 0.2)
    assert end.state["0.running_mean"].item() == pytest.approx(0.9 * 0.4 + (0.2 + 0.6) / 2)
    assert fleet.client_state("a").buffers is None
    end, fleet = run(Ditto(**SGD, buffers="local", personal_epochs=2), task=task)
    assert fleet.client_state("a").personal["0.num_batches_tracked"] == 4
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 2
    assert len(end.state.buffers) == 0
