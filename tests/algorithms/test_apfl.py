"""APFL by hand: w equals FedAvg, and the personal model, its weight and the mixture follow their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.apfl import APFL
from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from tests.support import toy
from tests.support.by_hand import assert_close
from tests.support.two_points import SGD, gradient, run


def test_two_rounds_equal_an_independent_computation() -> None:
    # In round 1, v = w = 0, so the gradient of alpha is 0 in its first step and not in its second.
    w, v, alpha = np.zeros(2), {s: np.zeros(2) for s in "ab"}, dict.fromkeys("ab", 0.25)
    for _ in range(2):
        trained = {}
        for site in "ab":
            local = w
            for _ in range(2):
                g = gradient(alpha[site] * v[site] + (1 - alpha[site]) * local, site)
                slope = g @ (v[site] - local)
                local, v[site] = local - 0.1 * gradient(local, site), v[site] - 0.1 * alpha[site] * g
                alpha[site] = min(max(alpha[site] - 0.5 * slope, 0), 1)
            trained[site] = local
        w = (trained["a"] + 3 * trained["b"]) / 4
    end, fleet = run(APFL(alpha=0.25, alpha_lr=0.5, epochs=2, **SGD))
    assert toy.line(end.state) == pytest.approx(tuple(w))
    assert all(toy.line(fleet.client_state(s).personal) == pytest.approx(tuple(v[s]), rel=1e-5) for s in "ab")
    assert [fleet.client_state(s).alpha for s in "ab"] == [pytest.approx(alpha[s], rel=1e-5) for s in "ab"]
    assert alpha["a"] != pytest.approx(0.25, abs=1e-3)
    scores = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    mixture = alpha["b"] * v["b"] + (1 - alpha["b"]) * w
    assert scores["b", "distance"] == pytest.approx(abs(mixture @ (2, 1) - 2), rel=1e-4)
    assert scores["b", "distance@global"] == pytest.approx(abs(w @ (2, 1) - 2), rel=1e-5)


def test_losses_are_logged_separately() -> None:
    # Round 1 from 0: half of 2^2. Both models have the same loss.
    end, _ = run(APFL(**SGD), rounds=1)
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    assert metrics == {"loss": pytest.approx(2.0), "personal_loss": pytest.approx(2.0), "alpha": 0.5}


@pytest.mark.parametrize("fields", [SGD, {"optimizer": "adam", "lr": 0.01}])
def test_the_global_model_is_that_of_fedavg(fields: dict[str, Any]) -> None:
    for network in (toy.Line, toy.Scaled):
        task = toy.task({"a": ((1, 2), (3, 1)), "b": ((2, 2), (0, 1), (1, 0), (3, 2))}, network=network, batch_size=2)
        ours, _ = run(APFL(epochs=3, **fields), task=task)
        assert_close(ours.state, run(FedAvg(epochs=3, **fields), task=task)[0].state, 1e-6)


def test_with_weight_0_inside_sites_predict_with_the_global_model() -> None:
    end, fleet = run(APFL(alpha=0.0, alpha_lr=0.0, epochs=3, **SGD))
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert values["a", "distance"] == values["a", "distance@global"]
    assert toy.line(fleet.client_state("a").personal) == (0, 0)


def test_with_weight_1_each_site_trains_alone() -> None:
    _, fleet = run(APFL(alpha=1.0, alpha_lr=0.0, epochs=3, **SGD), rounds=3)
    _, alone = run(LocalOnly(epochs=3, **SGD), rounds=3)
    assert all(fleet.client_state(site).personal == alone.client_state(site) for site in "ab")


def test_the_weight_stays_between_0_and_1() -> None:
    _, fleet = run(APFL(alpha_lr=1e3, epochs=3, **SGD), rounds=3)
    assert all(0 <= fleet.client_state(site).alpha <= 1 for site in "ab")


def test_a_site_that_was_never_sampled_and_an_outside_site_predict_with_the_global_model() -> None:
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    end, fleet = run(APFL(**SGD), rounds=1, task=task, cohort=1)
    (other,) = {"a", "b"} - set(end.cohort)
    assert fleet.client_state(other) is None
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert all(values[site, "distance"] == values[site, "distance@global"] for site in (other, "x"))


def test_only_the_model_is_sent() -> None:
    traffic = run(APFL(**SGD))[0].traffic
    assert (traffic.up, traffic.down) == ({"a": 8, "b": 8}, {"a": 8, "b": 8})


def test_frozen_layers_stay_frozen_and_buffers_follow_the_policy() -> None:
    class Frozen(toy.Scaled):
        def __init__(self) -> None:
            super().__init__()
            self[0].weight.requires_grad_(False)

    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=Frozen)
    end, fleet = run(APFL(**SGD, buffers="local"), task=task)
    assert fleet.client_state("a").personal["0.weight"] == end.state["0.weight"] == 1
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 2
    assert fleet.client_state("a").personal["0.num_batches_tracked"] == 2
    assert len(end.state.buffers) == 0
