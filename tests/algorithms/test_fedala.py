"""FedALA by hand: the mixing weights, the start of a round, and the limit FedAvg."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.fedala import FedALA, last_parameters, random_part
from algorithms.fedavg import FedAvg
from raysim import LocalFleet
from tests.support import toy
from tests.support.two_points import SGD, gradient, run


def mixing(fleet: LocalFleet, site: str) -> Any:
    model = fleet.client_state(site).mixing
    return np.array([model["weight"].item(), model["bias"].item()])


def test_three_rounds_equal_an_independent_computation() -> None:
    w, theta, share = np.zeros(2), {s: np.zeros(2) for s in "ab"}, {s: np.ones(2) for s in "ab"}
    for number in range(3):
        for site in "ab":
            for _ in range((0, 3, 1)[number]):
                start = theta[site] + share[site] * (w - theta[site])
                share[site] = np.clip(share[site] - 0.5 * gradient(start, site) * (w - theta[site]), 0, 1)
            start = theta[site] + share[site] * (w - theta[site])
            theta[site] = start - 0.1 * gradient(start, site)
        w = (theta["a"] + 3 * theta["b"]) / 4
    end, fleet = run(FedALA(start_epochs=3, weight_lr=0.5, **SGD), rounds=3)
    assert toy.line(end.state) == pytest.approx(tuple(w))
    assert all(toy.line(fleet.client_state(s).personal) == pytest.approx(tuple(theta[s]), rel=1e-5) for s in "ab")
    assert all(mixing(fleet, s) == pytest.approx(share[s], rel=1e-5) for s in "ab")
    assert (share["b"] < 0.99).any()
    scores = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert scores["b", "distance"] == pytest.approx(abs(theta["b"] @ (2, 1) - 2), rel=1e-4)


def test_the_first_mixing_step_by_hand() -> None:
    # After round 1: w = (0.35, 0.2), b has (0.4, 0.2). At W = 1 b has r = -1.1, and its gradient is (-2.2, -1.1):
    # dW = (-2.2 * -0.05, 0), so W = (1 - 2 * 0.11, 1) and the start is (0.4 - 0.78 * 0.05, 0.2).
    _, fleet = run(FedALA(start_epochs=1, weight_lr=2.0, **SGD))
    assert mixing(fleet, "b") == pytest.approx([0.78, 1.0])
    u = 0.4 - 0.78 * 0.05
    r = 2 * u + 0.2 - 2
    assert toy.line(fleet.client_state("b").personal) == pytest.approx((u - 0.1 * 2 * r, 0.2 - 0.1 * r))


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), toy.Line())
        nn.init.ones_(self[0].weight)
        nn.init.zeros_(self[0].bias)


def test_layers_before_the_last_start_from_the_global_model() -> None:
    task = toy.two_sites(Two)
    _, fleet = run(FedALA(**SGD), task=task)
    assert set(fleet.client_state("a").mixing) == {"1.weight", "1.bias"}
    _, fleet = run(FedALA(**SGD, layers=9), task=task)
    assert set(fleet.client_state("a").mixing) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_last_parameters_in_the_order_of_definition_without_frozen_ones() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))
    assert last_parameters(net, 1) == ["2.1.weight", "2.1.bias"]
    assert last_parameters(net, 2) == ["2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"]
    net[2][1].requires_grad_(False)
    assert last_parameters(net, 1) == ["2.0.weight", "2.0.bias"]
    assert last_parameters(nn.Linear(1, 1), 1) == ["weight", "bias"]


@pytest.mark.parametrize("network", [toy.Line, toy.Scaled])
def test_without_steps_of_the_weights_it_is_bit_identical_to_fedavg(network: Any) -> None:
    task = toy.task({"a": ((1, 2), (3, 1)), "b": ((2, 2), (0, 1), (1, 0), (3, 2))}, network=network, batch_size=2)
    ours, _ = run(FedALA(weight_lr=0.0, epochs=3, **SGD), rounds=3, task=task)
    assert ours.state == run(FedAvg(epochs=3, **SGD), rounds=3, task=task)[0].state


def test_a_random_part_of_the_data() -> None:
    split = toy.split(tuple((x, 0) for x in range(10)))
    torch.manual_seed(0)
    part = random_part(split, 0.8)
    assert len(part) == len(part.labels) == len(set(part.inputs.ravel())) == 8
    assert part.cases.tolist() == part.inputs.ravel().tolist()
    assert len(random_part(split, 0.01)) == 1


def test_a_site_keeps_its_state_while_it_is_not_sampled() -> None:
    task = toy.two_sites()
    algorithm, fleet = FedALA(**SGD), LocalFleet(task, rounds=3)
    state, _ = algorithm.round(fleet, algorithm.init(task))
    before = fleet.client_state("a")
    algorithm.round(fleet.at(["b"]), state)
    assert fleet.client_state("a") == before


def test_a_site_that_was_never_sampled_and_an_outside_site_predict_with_the_global_model() -> None:
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    end, _ = run(FedALA(**SGD), rounds=1, task=task, cohort=1)
    (other,) = {"a", "b"} - set(end.cohort)
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert all(values[site, "distance"] == values[site, "distance@global"] for site in (other, "x"))


def test_only_the_model_is_sent_and_the_mixing_weights_change_no_buffer() -> None:
    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=toy.Scaled)
    end, fleet = run(FedALA(**SGD, buffers="local"), task=task)
    assert end.traffic.up == end.traffic.down == {"a": 16, "b": 16}
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 2
