"""FedAdam, FedYogi and FedAvgM by hand. The mean change of the toy task's first round is D = (0.35, 0.2)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from algorithms.fedadam import FedAdam
from algorithms.fedavg import FedAvg
from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def last(algorithm: Any, rounds: int = 1, task: Any = None) -> Any:
    task = task or toy.two_sites()
    *_, end = federate(algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds)
    return end


def state(rounds: int = 1, task: Any = None, **fields: Any) -> Any:
    return last(FedAdam(**SGD | fields), rounds, task).state


def test_adams_first_step_has_no_bias_correction() -> None:
    # m = 0.1 D; v = 0.75 * 0.1^2 + 0.25 D^2 = 0.038125 and 0.0175.
    end = state(server_lr=0.5, beta1=0.9, beta2=0.75, tau=0.1)
    assert toy.line(end.first_moment) == pytest.approx((0.035, 0.02))
    assert toy.line(end.second_moment) == pytest.approx((0.0075 + 0.25 * 0.1225, 0.0075 + 0.25 * 0.04))
    expected = 0.5 * 0.035 / (math.sqrt(0.038125) + 0.1), 0.5 * 0.02 / (math.sqrt(0.0175) + 0.1)
    assert toy.line(end.model) == pytest.approx(expected)


def test_adams_second_step() -> None:
    # beta2 = 0: sqrt(v) = |D|. Round 1: m = (0.175, 0.1), x = 0.1 (0.175 / 0.4, 0.1 / 0.25) = (0.04375, 0.04).
    # From there a: r = -1.91625, to (0.235375, 0.231625); b: r = -1.8725, to (0.41825, 0.22725).
    d = (0.235375 + 1.25475) / 4 - 0.04375, (0.231625 + 0.68175) / 4 - 0.04
    m = 0.0875 + 0.5 * d[0], 0.05 + 0.5 * d[1]
    end = state(rounds=2, server_lr=0.1, beta1=0.5, beta2=0.0, tau=0.05)
    assert toy.line(end.first_moment) == pytest.approx(m)
    assert toy.line(end.model) == pytest.approx(
        (0.04375 + 0.1 * m[0] / (d[0] + 0.05), 0.04 + 0.1 * m[1] / (d[1] + 0.05))
    )


def test_yogi_changes_v_by_at_most_the_square() -> None:
    # tau^2 = 0.09 is below 0.35^2 = 0.1225 and above 0.2^2 = 0.04.
    end = state(server_optimizer="yogi", beta2=0.75, tau=0.3)
    assert toy.line(end.second_moment) == pytest.approx((0.09 + 0.25 * 0.1225, 0.09 - 0.25 * 0.04))


def test_avgm_is_momentum_at_the_server() -> None:
    # Round 2 of FedAvg goes from (0.35, 0.2) to (0.55125, 0.31875); momentum adds half of the first change.
    end = state(rounds=2, server_optimizer="avgm", server_lr=1.0, beta1=0.5)
    assert toy.line(end.model) == pytest.approx((0.55125 + 0.175, 0.31875 + 0.1))
    assert end.second_moment is None


def test_avgm_without_momentum_is_bit_identical_to_fedavg() -> None:
    for task in (toy.two_sites(), toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)):
        found = state(rounds=3, task=task, server_optimizer="avgm", server_lr=1.0, beta1=0.0, epochs=3)
        assert found.model == last(FedAvg(**SGD, epochs=3), rounds=3, task=task).state


def test_a_cohort_below_all_sites_gives_the_change() -> None:
    task, algorithm = toy.two_sites(), FedAdam(**SGD, server_optimizer="avgm", server_lr=0.5, beta1=0.0)
    end, _ = algorithm.round(LocalFleet(task, rounds=1).at(["b"]), algorithm.init(task))
    assert toy.line(end.model) == pytest.approx((0.2, 0.1))


def test_bytes_are_the_model_up_and_down() -> None:
    traffic = last(FedAdam(**SGD), rounds=2).traffic
    assert traffic.up == traffic.down == {"a": 8, "b": 8}


PAIR: toy.Points = ((1, 0), (3, 1))
FAR: toy.Points = ((5, 0), (7, 1), (5, 0), (7, 1))


def test_buffers_are_averaged_without_server_optimizer() -> None:
    end = state(task=toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled), server_lr=0.5)
    assert end.model["0.running_mean"].item() == pytest.approx((2 * 0.2 + 4 * 0.6) / 6)
    assert set(end.first_moment) == set(end.second_moment) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_weight_without_change_is_kept() -> None:
    # Because w = 0, scale and shift have no gradient in round 1.
    end = state(task=toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled))
    assert (end.model["0.weight"].item(), end.model["0.bias"].item()) == (1, 0)
