"""FedProx by hand: the pull mu (w - w0) is zero in the first step, and not from the second step on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.fedavg import FedAvg
from algorithms.fedprox import FedProx, pull_to_start
from raysim import Algorithm, LocalFleet, Model, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def after(algorithm: Algorithm[Model], rounds: int = 1) -> Model:
    task = toy.two_sites()
    *_, end = federate(algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds)
    return end.state


def test_the_first_step_is_fedavgs() -> None:
    assert after(FedProx(mu=5.0, **SGD)) == after(FedAvg(**SGD))


def test_the_second_step_is_pulled_back() -> None:
    # mu = 1. a at (0.2, 0.2): r = -1.6, gradient (-1.6 + 0.2, -1.6 + 0.2), to (0.34, 0.34).
    # b at (0.4, 0.2): r = -1, gradient (-2 + 0.4, -1 + 0.2), to (0.56, 0.28).
    expected = (0.34 + 3 * 0.56) / 4, (0.34 + 3 * 0.28) / 4
    assert toy.line(after(FedProx(mu=1.0, steps=2, **SGD))) == pytest.approx(expected)


def test_without_pull_it_is_bit_identical_to_fedavg() -> None:
    assert after(FedProx(mu=0.0, epochs=3, **SGD), rounds=2) == after(FedAvg(epochs=3, **SGD), rounds=2)


def test_the_pull_is_to_the_model_of_this_round() -> None:
    # Two rounds of one step: each round starts at its w0, so the pull is always zero.
    assert after(FedProx(mu=5.0, **SGD), rounds=2) == after(FedAvg(**SGD), rounds=2)


def test_parameters_that_are_frozen_or_without_gradient_are_skipped() -> None:
    net = torch.nn.Sequential(toy.Line(), toy.Line())
    net[0].bias.requires_grad_(False)
    correct = pull_to_start(net, 0.5)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(2)
    trained[0].grad = torch.ones(1, 1)
    correct(trained)
    assert trained[0].grad.item() == 1 + 0.5 * 2
    assert trained[1].grad is None
