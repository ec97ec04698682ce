"""Centralized: training on the pooled data at one site."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.centralized import Centralized, pooled
from raysim import LocalFleet, federate, weights
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def last(task: Any = None, rounds: int = 1, cohort: float | int = 1.0, **fields: Any) -> Any:
    task = task or toy.two_sites()
    algorithm = Centralized(**SGD | fields)
    return list(federate(algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds, cohort=cohort))[-1]


def test_two_steps_on_the_pooled_data() -> None:
    # (1, 2) and three times (2, 2): r = -2, gradient (-(2 + 12) / 4, -2), to (0.35, 0.2);
    # then r = -1.45 and -1.1: gradient (-(1.45 + 6.6) / 4, -(1.45 + 3.3) / 4).
    expected = 0.35 + 0.1 * 2.0125, 0.2 + 0.1 * 1.1875
    assert toy.line(last(steps=2).state.model) == pytest.approx(expected)
    assert toy.line(last(rounds=2).state.model) == pytest.approx(expected)


def test_same_as_a_plain_loop_over_all_points() -> None:
    points = torch.tensor([[1.0], [2], [2], [2]])
    net = toy.Line()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        toy.half_squares(net(points), torch.tensor([[2]] * 4)).backward()
        optimizer.step()
    found = last(rounds=5).state.model
    assert toy.line(found) == pytest.approx(toy.line(weights(net)), rel=1e-6)


def test_the_optimizer_continues_over_rounds() -> None:
    # With momentum 0.5: step 1 from 0 by 0.1 (3.5, 2) to (0.35, 0.2); the gradient there is -(2.0125, 1.1875), so the
    # second velocity is 0.5 (3.5, 2) + (2.0125, 1.1875).
    expected = 0.35 + 0.1 * (1.75 + 2.0125), 0.2 + 0.1 * (1.0 + 1.1875)
    assert toy.line(last(rounds=2, momentum=0.5).state.model) == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_rounds_are_a_training_without_interruption(optimizer: str) -> None:
    fields: dict[str, Any] = {"optimizer": optimizer, "momentum": 0.9}
    assert last(rounds=4, **fields).state.model == last(rounds=2, steps=2, **fields).state.model


def test_a_round_can_have_the_steps_of_a_round_of_fedavg() -> None:
    # With batches of 2, site a (1 example) takes 1 step and site b (3 examples) 2: (1 * 1 + 3 * 2) / 4, rounded to 2.
    # The pool has 4 examples, so one epoch has 2 steps, and three epochs have 6 instead of 3 and 6: 21 / 4.
    task = toy.task({"a": toy.A, "b": toy.B}, batch_size=2)
    matched = Centralized(match_local_steps=True)
    assert matched.mean_local_steps(task) == 2
    assert Centralized(epochs=3).mean_local_steps(task) == 5
    assert Centralized(steps=7).mean_local_steps(task) == 7
    whole = toy.two_sites()  # batches of 8: one step per epoch at a site and for the pool
    assert last(whole, match_local_steps=True).state.model == last(whole).state.model
    five = last(task, match_local_steps=True, epochs=3).state.model
    assert five == last(task, steps=5).state.model != last(task, epochs=3).state.model


def test_the_pool_has_all_inside_training_data_in_site_order() -> None:
    pool = pooled(toy.task({"b": toy.B, "a": toy.A, "x": ((9, 9),)}, outside=["x"]))
    assert pool.inputs.flatten().tolist() == [1, 2, 2, 2]
    assert pool.labels is not None
    assert len(pool) == len(pool.labels) == len(pool.cases) == len(pool.spacing) == 4


def test_the_loss_and_the_bytes_of_one_model() -> None:
    end = last()
    assert end.loss == pytest.approx(2.0)
    assert end.traffic.up == end.traffic.down == {"a": 8}


@pytest.mark.parametrize("cohort", [1, 0.5])
def test_the_pool_does_not_depend_on_the_cohort(cohort: float | int) -> None:
    assert toy.line(last(steps=2, cohort=cohort).state.model) == pytest.approx(toy.line(last(steps=2).state.model))


PAIR: toy.Points = ((1, 0), (3, 1))


@pytest.mark.parametrize("cohort", [1.0, 1])
def test_local_statistics_are_those_of_the_pool(cohort: float | int) -> None:
    # Only one site trains, so its statistics are those of the model for every value of `buffers`.
    task = toy.task({"a": PAIR, "b": PAIR}, network=toy.Scaled)
    local = last(task, rounds=3, cohort=cohort, buffers="local")
    assert local.state == last(task, rounds=3, cohort=cohort, buffers="average").state


def test_moments_are_counted_as_bytes() -> None:
    # Adam has two moments for each of the two parameters, and a step count, from the second round on.
    assert last(rounds=2, optimizer="adam").traffic.down == {"a": 8 + 16 + 4}
