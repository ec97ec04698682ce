"""FedNova by hand. Site a has the point (1, 2), site b three times (2, 2); batches of one point, so 1 and 3 steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.fedavg import FedAvg
from algorithms.fednova import FedNova, accumulated_steps
from raysim import ConfigError, LocalFleet, Model, federate
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def run(algorithm: Any, task: Any, rounds: int = 1) -> tuple[Any, LocalFleet]:
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, evaluate_every=rounds)
    return end, fleet


def unequal(network: Any = toy.Line) -> Any:
    return toy.task({"a": toy.A, "b": toy.B}, network=network, batch_size=1)


def test_changes_are_divided_by_local_steps() -> None:
    # a: one step to (0.2, 0.2). b: r = -2, -1, -0.5, to (0.7, 0.35) in three steps. a = 1/4 * 1 + 3/4 * 3 = 2.5.
    end, _ = run(FedNova(**SGD), unequal())
    expected = 2.5 * (0.2 / 4 + 0.75 * 0.7 / 3), 2.5 * (0.2 / 4 + 0.75 * 0.35 / 3)
    assert toy.line(end.state) == pytest.approx(expected)
    assert end.metrics == {"effective_steps": 2.5}


def test_momentum_is_part_of_the_steps() -> None:
    # A constant gradient of 1 is added 1, 1.5 and 1.75 times the rate with momentum 0.5.
    assert accumulated_steps(3, 0.5) == 1 + 1.5 + 1.75
    assert accumulated_steps(4, 0.0) == 4
    # b with momentum: r = -2 to (0.4, 0.2); r = -1, velocity (-4, -2) / 2 + (-2, -1), to (0.8, 0.4); r = 0, velocity
    # (-2, -1), to (1, 0.5).
    end, _ = run(FedNova(**SGD | {"momentum": 0.5}), unequal())
    effective = 1 / 4 + 3 / 4 * 4.25
    expected = effective * (0.2 / 4 + 0.75 * 1.0 / 4.25), effective * (0.2 / 4 + 0.75 * 0.5 / 4.25)
    assert toy.line(end.state) == pytest.approx(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_steps_give_fedavg(momentum: float) -> None:
    fields: dict[str, Any] = SGD | {"momentum": momentum, "steps": 3}
    nova, plain = (run(cls(**fields), unequal(), rounds=3)[0].state for cls in (FedNova, FedAvg))
    assert toy.line(nova) == pytest.approx(toy.line(plain), rel=1e-6)


def test_the_fixed_point_is_near_the_minimum_where_fedavg_is_not() -> None:
    # x = 0, so only the shift b moves: to 0 at site a in one step, to 4 at site b in three. The minimum is at 3.
    # A site moves by 1 - 0.9^T of the distance, so the fixed points are those of the weighted sums of these moves.
    task = toy.task({"a": ((0, 0),), "b": ((0, 4),) * 3}, batch_size=1)
    moves = np.array([1 - 0.9, 1 - 0.9**3]) * [1 / 4, 3 / 4]
    found = {cls: toy.line(run(cls(**SGD), task, rounds=150)[0].state)[1] for cls in (FedNova, FedAvg)}
    assert found[FedAvg] == pytest.approx(4 * moves[1] / moves.sum(), rel=1e-3)  # 3.56
    moves /= [1, 3]
    assert found[FedNova] == pytest.approx(4 * moves[1] / moves.sum(), rel=1e-3)  # 2.92
    assert abs(found[FedNova] - 3) < 0.1 < abs(found[FedAvg] - 3)


def test_bytes_are_those_of_the_model_and_a_number() -> None:
    end, _ = run(FedNova(**SGD), unequal())
    assert end.traffic.up == {"a": 16, "b": 16}
    assert end.traffic.down == {"a": 8, "b": 8}


def test_buffers_are_averaged_by_examples() -> None:
    points = {"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1), (5, 0), (7, 1))}
    task = toy.task(points, network=toy.Scaled, batch_size=2)
    nova, plain = (run(cls(**SGD), task)[0].state for cls in (FedNova, FedAvg))
    assert nova.buffers == plain.buffers
    end, fleet = run(FedNova(**SGD, buffers="local"), task, rounds=2)
    assert len(end.state.buffers) == 0
    assert isinstance(fleet.client_state("a"), Model)


def test_other_optimisers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected sgd.*set algorithm.optimizer=sgd"):
        FedNova(optimizer="adam")
    with pytest.raises(ConfigError, match="expected sgd"):
        resolve(parse_pairs(["algorithm=fednova", "algorithm.optimizer=adamw"]))
