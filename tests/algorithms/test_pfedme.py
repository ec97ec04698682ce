"""pFedMe by hand: personal models near the minimiser of the Moreau envelope, and the steps of the global model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.fedavg import FedAvg
from algorithms.pfedme import PFedMe
from raysim import ConfigError
from tests.support import toy
from tests.support.two_points import SGD, gradient, run


def test_one_round_by_hand() -> None:
    # lam = 2, outer_lr = 0.25. a: theta = 0, residual -2, to (0.2, 0.2); residual -1.6, pull 2 * 0.2, to (0.32, 0.32).
    # w to half of it, (0.16, 0.16). b: residual -2, to (0.4, 0.2); residual -1, pull 2 * (0.4, 0.2), to (0.52, 0.26).
    end, fleet = run(PFedMe(lam=2.0, outer_lr=0.25, inner_steps=2, **SGD), rounds=1)
    assert toy.line(fleet.client_state("a").personal) == pytest.approx((0.32, 0.32))
    assert toy.line(fleet.client_state("b").personal) == pytest.approx((0.52, 0.26))
    assert toy.line(end.state) == pytest.approx(((0.16 + 3 * 0.26) / 4, (0.16 + 3 * 0.13) / 4))


def test_two_rounds_equal_an_independent_computation() -> None:
    w, theta = np.zeros(2), {}
    for _ in range(2):
        moved = {}
        for site in "ab":
            local, theta[site] = w, w
            for _ in range(3):  # one batch per epoch
                for _ in range(4):
                    theta[site] = theta[site] - 0.1 * (gradient(theta[site], site) + 3 * (theta[site] - local))
                local = local - 0.2 * 3 * (local - theta[site])
            moved[site] = local
        w = 0.5 * w + 0.5 * (moved["a"] + 3 * moved["b"]) / 4
    end, fleet = run(PFedMe(lam=3.0, outer_lr=0.2, inner_steps=4, server_lr=0.5, epochs=3, **SGD))
    assert toy.line(end.state) == pytest.approx(tuple(w))
    assert all(toy.line(fleet.client_state(s).personal) == pytest.approx(tuple(theta[s]), rel=1e-5) for s in "ab")


@pytest.mark.parametrize("fields", [SGD, {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}])
def test_with_one_inner_step_and_a_full_outer_step_it_is_bit_identical_to_fedavg(fields: dict[str, Any]) -> None:
    task = toy.task({"a": ((1, 2), (3, 1)), "b": ((2, 2), (0, 1), (1, 0), (3, 2))}, network=toy.Scaled, batch_size=2)
    ours, _ = run(PFedMe(lam=2.0, outer_lr=0.5, inner_steps=1, epochs=3, **fields), task=task)
    assert ours.state == run(FedAvg(epochs=3, **fields), task=task)[0].state


def test_many_inner_steps_reach_the_minimiser_of_the_envelope() -> None:
    # a: (x + lam) theta = y x for the features x = (1, 1): theta = 2 / (2 + lam) each.
    _, fleet = run(PFedMe(lam=3.0, outer_lr=1e-6, inner_steps=200, **SGD), rounds=1)
    assert toy.line(fleet.client_state("a").personal) == pytest.approx((0.4, 0.4), abs=1e-5)


def test_inside_sites_predict_with_personal_models_and_others_with_the_global_model() -> None:
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    end, fleet = run(PFedMe(**SGD), rounds=1, task=task, cohort=1)
    (sampled,) = end.cohort
    (other,) = {"a", "b"} - {sampled}
    assert fleet.client_state(other) is None
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert all(values[site, "distance"] == values[site, "distance@global"] for site in (other, "x"))
    assert values[sampled, "distance"] < values[sampled, "distance@global"]


def test_an_outer_step_beyond_the_personal_model_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"outer_lr=0.1 with algorithm.lam=15: .* set algorithm.outer_lr=0.066 or"):
        PFedMe(outer_lr=0.1)
    assert PFedMe(outer_lr=0.066)


def test_only_the_model_is_sent() -> None:
    traffic = run(PFedMe(**SGD))[0].traffic
    assert (traffic.up, traffic.down) == ({"a": 8, "b": 8}, {"a": 8, "b": 8})


def test_buffers_follow_the_policy() -> None:
    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=toy.Scaled)
    end, fleet = run(PFedMe(**SGD, inner_steps=3), task=task)
    assert end.state["0.num_batches_tracked"] == 6
    assert fleet.client_state("a").buffers is None
    end, fleet = run(PFedMe(**SGD, inner_steps=3, buffers="local"), task=task)
    assert len(end.state.buffers) == 0
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 6
