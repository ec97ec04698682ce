"""SCAFFOLD by hand. Site a has the point (1, 2), site b three times (2, 2); all start from w = b = 0."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms.fedavg import FedAvg
from algorithms.scaffold import Scaffold, ServerState
from raysim import ConfigError, LocalFleet, Model, federate
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def run(rounds: int = 2, task: Any = None, **fields: Any) -> tuple[Any, LocalFleet]:
    task = task or toy.two_sites()
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(Scaffold(**{"lr": 0.1} | fields), task, fleet, rounds=rounds)
    return end, fleet


def fedavg(rounds: int = 2, task: Any = None, **fields: Any) -> Model:
    task = task or toy.two_sites()
    *_, end = federate(FedAvg(**SGD | fields), task, LocalFleet(task, rounds=rounds), rounds=rounds)
    return end.state


def controls(end: Any, fleet: LocalFleet) -> dict[str, Any]:
    return {"a": toy.line(fleet.client_state("a").control), "b": toy.line(fleet.client_state("b").control)} | {
        "server": toy.line(end.state.control)
    }


def test_the_first_round_equals_fedavg_and_keeps_mean_gradients() -> None:
    # Two steps: a with r = -2, -1.6 and b with r = -2, -1, times (x, 1); c is their mean, weighted 1 : 3.
    end, fleet = run(rounds=1, steps=2)
    assert end.state.model == fedavg(rounds=1, steps=2)
    expected = {"a": (-1.8, -1.8), "b": (-3.0, -1.5), "server": ((-1.8 - 9) / 4, (-1.8 - 4.5) / 4)}
    assert controls(end, fleet) == {name: pytest.approx(value) for name, value in expected.items()}


def test_the_second_round_uses_the_corrected_gradient() -> None:
    # From (0.54, 0.315) with c - c_a = (-0.9, 0.225) and c - c_b = (0.3, -0.075).
    # a: r = -1.145, gradient (-2.045, -0.92), to (0.7445, 0.407); r = -0.8485, (-1.7485, -0.6235), (0.91935, 0.46935).
    # b: r = -0.605, gradient (-0.91, -0.68), to (0.631, 0.383); r = -0.355, (-0.41, -0.43), to (0.672, 0.426).
    end, fleet = run(steps=2)
    assert toy.line(end.state.model) == pytest.approx(((0.91935 + 2.016) / 4, (0.46935 + 1.278) / 4))
    # c_k is the mean gradient without the correction: a mean r = -0.99675, b mean r = -0.48, times (x, 1).
    expected = {"a": (-0.99675, -0.99675), "b": (-0.96, -0.48)}
    expected["server"] = (-0.99675 - 2.88) / 4, (-0.99675 - 1.44) / 4
    assert controls(end, fleet) == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_corrections_of_one_step_cancel_in_the_mean() -> None:
    end, _ = run(rounds=3)
    assert toy.line(end.state.model) == pytest.approx(toy.line(fedavg(rounds=3)))


def test_uniform_weights_sites_equally() -> None:
    # (0.2, 0.2) and (0.4, 0.2); gradients (-2, -2) and (-4, -2).
    end, fleet = run(rounds=1, uniform=True)
    assert toy.line(end.state.model) == pytest.approx((0.3, 0.2))
    assert controls(end, fleet)["server"] == pytest.approx((-3, -2))


@pytest.mark.parametrize(("uniform", "parts"), [(False, (1 / 4, 3 / 4)), (True, (1 / 2, 1 / 2))])
def test_a_cohort_moves_the_control_variate_by_its_fraction(uniform: bool, parts: tuple[float, float]) -> None:
    task = toy.two_sites()
    algorithm, fleet = Scaffold(lr=0.1, uniform=uniform), LocalFleet(task, rounds=2)
    first, _ = algorithm.round(fleet.at(["a"]), algorithm.init(task))
    assert toy.line(first.model) == pytest.approx((0.2, 0.2))
    assert toy.line(first.control) == pytest.approx((-2 * parts[0],) * 2)
    # b: r = 0.4 + 0.2 - 2 = -1.4 at (0.2, 0.2), gradient (-2.8, -1.4), c_k = 0, and c of the server.
    second, _ = algorithm.round(fleet.at(["b"]), first)
    assert toy.line(second.model) == pytest.approx((0.2 + 0.28 + 0.2 * parts[0], 0.2 + 0.14 + 0.2 * parts[0]))
    assert toy.line(fleet.client_state("b").control) == pytest.approx((-2.8, -1.4))
    assert toy.line(second.control) == pytest.approx((-2 * parts[0] - 2.8 * parts[1], -2 * parts[0] - 1.4 * parts[1]))


def test_the_server_learning_rate_scales_the_step() -> None:
    assert toy.line(run(rounds=1, server_lr=0.5)[0].state.model) == pytest.approx((0.175, 0.1))


def test_the_control_variate_does_not_depend_on_the_schedule() -> None:
    # Round 2 of 2 has half the learning rate; from (0.35, 0.2) the gradients are still -1.45 (1, 1) and -1.1 (2, 1).
    end, fleet = run(schedule="linear")
    assert controls(end, fleet)["a"] == pytest.approx((-1.45, -1.45), rel=1e-5)
    assert controls(end, fleet)["b"] == pytest.approx((-2.2, -1.1), rel=1e-5)


def test_equal_sites_give_fedavg() -> None:
    # c_k = c at every site, so there is no correction.
    task = toy.task({"a": toy.A, "b": toy.A})
    end, _ = run(rounds=3, task=task, steps=3)
    assert toy.line(end.state.model) == pytest.approx(toy.line(fedavg(rounds=3, task=task, steps=3)))


def test_bytes_are_twice_the_model_up_and_down() -> None:
    traffic = run()[0].traffic
    assert traffic.up == traffic.down == {"a": 16, "b": 16}


PAIR: toy.Points = ((1, 0), (3, 1))
FAR: toy.Points = ((5, 0), (7, 1))


def test_buffers_have_no_control_variate_and_are_averaged() -> None:
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    end, fleet = run(rounds=1, task=task, server_lr=0.5)
    assert (
        set(end.state.control) == set(fleet.client_state("a").control) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    )
    assert end.state.model["0.running_mean"].item() == pytest.approx((0.2 + 0.6) / 2)
    assert fleet.client_state("a").buffers is None


def test_local_buffers_stay_in_the_client_state() -> None:
    task = toy.task({"a": PAIR, "b": FAR}, network=toy.Scaled)
    end, fleet = run(task=task, buffers="local")
    assert set(end.state.model) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert fleet.client_state("b").buffers["0.running_mean"].item() == pytest.approx(0.1 * 6 + 0.9 * 0.6)


@pytest.mark.parametrize("fields", [{"optimizer": "adam"}, {"momentum": 0.9}])
def test_other_optimisers_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected plain sgd.*algorithm.optimizer=sgd algorithm.momentum=0"):
        Scaffold(**fields)
    keys = [f"algorithm.{name}={value}" for name, value in fields.items()]
    with pytest.raises(ConfigError, match="expected plain sgd"):
        resolve(parse_pairs(["algorithm=scaffold", *keys]))


def test_the_state_has_the_model() -> None:
    state = Scaffold().init(toy.two_sites())
    assert isinstance(state, ServerState)
    assert state.total_weight == 4
    assert toy.line(state.control) == (0, 0)
