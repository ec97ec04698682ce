"""MOON on a network with two features, against an independent computation with numerical gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.fedavg import FedAvg
from algorithms.moon import MOON, FeatureExtractor, contrast, fixed_network
from raysim import ConfigError, LocalFleet, Model, federate, weights
from tests.support import toy
from tests.support.contract import task as contract_task

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
START = np.array([1.0, -0.5, 0.2, 0.4, 0.3, 0.6, 0.1])  # u, c, v, b below


class Features(nn.Sequential):
    """z = u x + c with two features, then v z + b."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 2), nn.Linear(2, 1))
        nn.utils.vector_to_parameters(torch.tensor(START, dtype=torch.float32), self.parameters())


def run(algorithm: Any, rounds: int = 2, task: Any = None) -> tuple[Any, LocalFleet]:
    task = task or toy.two_sites(Features)
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds)
    return end, fleet


def vector(model: Model) -> Any:
    return np.concatenate([model[name].ravel() for name in ("0.weight", "0.bias", "1.weight", "1.bias")])


def features(w: Any, x: float) -> Any:
    return w[:2] * x + w[2:4]


def objective(w: Any, x: float, y: float, anchors: Any, mu: float, tau: float) -> float:
    z = features(w, x)
    residual = w[4:6] @ z + w[6] - y
    cosines = [z @ a / np.linalg.norm(z) / np.linalg.norm(a) for a in (features(anchor, x) for anchor in anchors)]
    return 0.5 * residual**2 - mu * math.log(math.exp(cosines[0] / tau) / sum(math.exp(c / tau) for c in cosines))


def trained(w: Any, x: float, y: float, previous: Any, steps: int, mu: float, tau: float) -> Any:
    """`steps` gradient steps from w, with central differences."""
    start = w
    for _ in range(steps):
        shifts = 1e-6 * np.eye(len(w))
        values = [objective(w + s, x, y, (start, previous), mu, tau) for s in (*shifts, *-shifts)]
        w = w - 0.1 * np.subtract(values[: len(w)], values[len(w) :]) / 2e-6
    return w


def test_two_rounds_equal_an_independent_computation() -> None:
    w, previous, points = START, {"a": START, "b": START}, {"a": (1, 2), "b": (2, 2)}
    for _ in range(2):
        previous = {site: trained(w, *points[site], previous[site], steps=3, mu=2.0, tau=0.5) for site in "ab"}
        w = (previous["a"] + 3 * previous["b"]) / 4
    end, fleet = run(MOON(mu=2.0, temperature=0.5, steps=3, **SGD))
    plain, _ = run(FedAvg(steps=3, **SGD))
    assert vector(end.state.model) == pytest.approx(w, abs=1e-5)
    assert vector(fleet.client_state("a").previous) == pytest.approx(previous["a"], abs=1e-5)
    assert np.abs(vector(plain.state) - w).max() > 1e-3


def test_without_the_term_it_is_bit_identical_to_fedavg() -> None:
    assert run(MOON(mu=0.0, epochs=3, **SGD))[0].state.model == run(FedAvg(epochs=3, **SGD))[0].state


def test_the_first_round_of_a_site_is_that_of_fedavg_at_every_mu() -> None:
    end, _ = run(MOON(mu=5.0, steps=3, **SGD), rounds=1)
    assert vector(end.state.model) == pytest.approx(vector(run(FedAvg(steps=3, **SGD), rounds=1)[0].state), abs=1e-6)
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    plain = objective(START, 1, 2, (START, START), 5.0, 0.5)
    assert plain > metrics["loss"] > 5 * math.log(2)  # the term is constant; the residual falls in each step


def test_the_contrastive_loss_by_hand() -> None:
    # Cosines 1 and 0, then 0 and -1, over tau = 1/2.
    z, one, other = (
        torch.tensor([[2.0, 0], [0, 3]]),
        torch.tensor([[1.0, 0], [1, 0]]),
        torch.tensor([[0.0, 5], [0, -1]]),
    )
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2
    assert contrast(z, [one, other], 0.5).item() == pytest.approx(expected)
    assert contrast(z, [one, one], 0.5).item() == pytest.approx(math.log(2))


def test_features_are_the_input_of_the_layer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    x = torch.rand(2, 1, 4, 4)
    outputs, found = FeatureExtractor(net, "2")(x)
    assert outputs.equal(net(x))
    assert found.equal(net[1](net[0](x)).flatten(1))


def test_features_may_be_the_input_of_a_block() -> None:
    task = contract_task()
    heads = {
        head: MOON(head=head).init(task).head for head in ("model.2", "model.2.1.conv", "model.0.conv.unit0.conv.bias")
    }
    assert list(heads.values()) == ["model.2", "model.2.1.conv", "model.0.conv.unit0.conv"]
    with pytest.raises(ConfigError, match="matches some layers, but not all"):
        MOON(head="model.9").init(task)
    *_, end = federate(MOON(head="model.2"), task, LocalFleet(task, rounds=2), rounds=2)
    assert end.loss is not None


def test_a_fixed_network_uses_the_statistics_of_the_batch() -> None:
    site, x = toy.site(network=toy.Scaled), torch.tensor([[1.0], [3.0]])
    net, other = fixed_network(site, weights(site.load())), site.load()
    assert FeatureExtractor(net, "1")(x)[1].equal(FeatureExtractor(other, "1")(x)[1])
    assert not any(p.requires_grad for p in net.parameters())


def test_a_site_that_is_not_sampled_keeps_its_last_model() -> None:
    task = toy.two_sites(Features)
    algorithm, fleet = MOON(**SGD), LocalFleet(task, rounds=3)
    state, _ = algorithm.round(fleet, algorithm.init(task))
    before = fleet.client_state("a")
    algorithm.round(fleet.at(["b"]), state)
    assert fleet.client_state("a") == before


def test_only_the_model_and_the_name_of_its_layer_are_sent() -> None:
    traffic = run(MOON(**SGD))[0].traffic
    assert traffic.up == {"a": 28, "b": 28}
    assert traffic.down == {"a": 29, "b": 29}


def test_buffers_follow_the_policy() -> None:
    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=toy.Scaled)
    end, fleet = run(MOON(**SGD), task=task)
    assert end.state.model["0.num_batches_tracked"] == 2
    assert fleet.client_state("a").buffers is None
    assert set(fleet.client_state("a").previous) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    end, fleet = run(MOON(**SGD, buffers="local"), task=task)
    assert len(end.state.model.buffers) == 0
    assert fleet.client_state("b").buffers["0.running_mean"].item() == pytest.approx(0.1 * 6 + 0.9 * 0.6)
