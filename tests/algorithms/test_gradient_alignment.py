"""Gradient alignment on two and three quadratic losses with known Hessians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.fedavg import FedAvg
from algorithms.gradient_alignment import GradientAlignment, ServerState
from raysim import ConfigError, LocalFleet, Model, SiteError, Task, federate
from raysim.training.model_geometry import gram_matrix, weighted_variance
from tests.support import toy
from tests.support.slow import slow_except

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
POINTS = {"a": ((1.0, 2), (3.0, 1)), "b": ((2.0, 0), (-1.0, 3), (0.5, 1), (1.0, 1))}
SAME_X = {"a": ((1.0, 2), (3.0, 1)), "b": ((1.0, 0), (3.0, 3))}
SHARE = np.array([2, 4]) / 6


def at(*values: float) -> ServerState:
    """A state with these w and b."""
    w, b = (np.float32(value) for value in values)
    return ServerState(Model.of({"weight": w.reshape(1, 1), "bias": b.reshape(1)}))


def vector(model: Model) -> np.ndarray:
    return np.array([model["weight"].item(), model["bias"].item()])


def hessian(points: Sequence[tuple[float, int]]) -> np.ndarray:
    x = np.array([p[0] for p in points])
    return np.array([[np.square(x).mean(), x.mean()], [x.mean(), 1.0]])


def gradient(points: Sequence[tuple[float, int]], theta: np.ndarray) -> np.ndarray:
    x, y = np.array(points, float).T
    residual = theta[0] * x + theta[1] - y
    return np.array([(residual * x).mean(), residual.mean()])


def by_hand(theta: np.ndarray, points: dict[str, Any] = POINTS) -> tuple[np.ndarray, np.ndarray, float]:
    """The mean gradient, sum_k p_k H_k (g_k - g), and the alignment loss."""
    share = np.array([len(p) for p in points.values()]) / sum(len(p) for p in points.values())
    g = np.array([gradient(p, theta) for p in points.values()])
    mean = share @ g
    h = np.array([hessian(p) @ (gk - mean) for p, gk in zip(points.values(), g, strict=True)])
    return mean, share @ h, float(share @ np.square(g - mean).sum(1))


def one_round(algorithm: GradientAlignment, start: ServerState, task: Task | None = None) -> tuple[np.ndarray, Any]:
    fleet = LocalFleet(task or toy.task(POINTS), rounds=1)
    fleet.accounting.open_round(0)
    state, metrics = algorithm.round(fleet.at(fleet.task.inside), start)
    return vector(state.model), metrics


def plain(**fields: Any) -> GradientAlignment:
    """Gradient mode with one step of plain gradient descent, without limit on the correction."""
    return GradientAlignment(**{"mode": "gradient", "limit": None, "server_lr": 0.1, "strength": 0.5} | fields)


def test_without_strength_gradient_mode_is_fedsgd() -> None:
    theta = np.array([0.3, -0.2])
    after, metrics = one_round(plain(strength=0.0), at(*theta))
    assert after == pytest.approx(theta - 0.1 * by_hand(theta)[0], rel=1e-6)
    assert metrics["correction_ratio"] == 0
    assert metrics["alignment_loss"] == pytest.approx(by_hand(theta)[2], rel=1e-5)


@pytest.mark.parametrize("mode", ["local", "server"])
@pytest.mark.parametrize("network", [toy.Line, toy.Scaled])
def test_without_correction_it_is_bit_identical_to_fedavg(mode: Any, network: type[nn.Module]) -> None:
    task = toy.task(POINTS, network=network, batch_size=2)
    last = []
    for algorithm in (FedAvg(**SGD), GradientAlignment(strength=0.0, shift=0.0, mode=mode, **SGD)):
        *_, end = federate(algorithm, task, LocalFleet(task, rounds=3), rounds=3)
        last.append(end.state.model)
    assert last[0] == last[1]


@pytest.mark.parametrize("product", ["exact", "difference"])
def test_the_correction_is_the_gradient_of_the_alignment_loss(product: Any) -> None:
    theta = np.array([0.3, -0.2])
    mean, along, _ = by_hand(theta)
    after, metrics = one_round(plain(product=product), at(*theta))
    tolerance = 1e-3 if product == "difference" else 1e-5
    assert after == pytest.approx(theta - 0.1 * (mean + 2 * 0.5 * along), rel=tolerance)
    assert metrics["correction_ratio"] == pytest.approx(np.linalg.norm(along) / np.linalg.norm(mean), rel=tolerance)
    # Central differences of the loss give 2 sum_k p_k H_k (g_k - g).
    losses = [[by_hand(theta + sign * 1e-4 * axis)[2] for sign in (1, -1)] for axis in np.eye(2)]
    assert [(up - down) / 2e-4 for up, down in losses] == pytest.approx(2 * along, rel=1e-6)


def test_local_mode_with_one_step_of_sgd_is_gradient_mode() -> None:
    theta = np.array([0.3, -0.2])
    local = GradientAlignment(mode="local", limit=None, strength=0.5, **SGD)
    assert one_round(local, at(*theta))[0] == pytest.approx(one_round(plain(), at(*theta))[0], rel=1e-3)


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_a_correction_is_at_most_limit_times_as_long_as_the_mean_step(mode: Any) -> None:
    mine = GradientAlignment(mode=mode, strength=100, limit=1.5, server_lr=0.1 if mode == "gradient" else 1.0, **SGD)
    after, metrics = one_round(mine, at(0.3, -0.2))
    mean, along, _ = by_hand(theta := np.array([0.3, -0.2]))
    correction = 1.5 * np.linalg.norm(mean) * along / np.linalg.norm(along)
    assert metrics["correction_ratio"] == pytest.approx(1.5, rel=1e-5)
    assert after == pytest.approx(theta - 0.1 * (mean + correction), rel=1e-3)


@pytest.mark.parametrize("strength", slow_except([0.1, 0.5, 1.0], [0.5]))
@pytest.mark.parametrize("mode", ["gradient", "local"])
def test_rounds_converge_to_the_minimum_of_training_loss_plus_alignment_loss(mode: Any, strength: float) -> None:
    points = {"a": ((1.0, 2), (-1.0, -1)), "b": ((2.0, 1), (-2.0, 3), (2.0, 0), (-2.0, 2))}
    hessians = np.array([hessian(each) for each in points.values()])
    linear = np.array([-gradient(each, np.zeros(2)) for each in points.values()])  # g_k = H_k theta - linear_k
    mean_hessian, mean_linear = np.tensordot(SHARE, hessians, 1), SHARE @ linear
    # The gradient of L is linear in theta too: 2 sum_k p_k H_k (g_k - g).
    left = mean_hessian + 2 * strength * sum(p * h @ (h - mean_hessian) for p, h in zip(SHARE, hessians, strict=True))
    right = mean_linear + 2 * strength * sum(
        p * h @ (c - mean_linear) for p, h, c in zip(SHARE, hessians, linear, strict=True)
    )
    minimum = np.linalg.solve(left, right)
    assert np.abs(minimum - np.linalg.solve(mean_hessian, mean_linear)).max() > 0.02  # not the minimum of F
    rates = {"server_lr": 0.15} if mode == "gradient" else SGD | {"lr": 0.15}
    mine, task = GradientAlignment(mode=mode, strength=strength, **rates), toy.task(points)
    *_, last = federate(mine, task, LocalFleet(task, rounds=120), rounds=120)
    assert vector(last.state.model) == pytest.approx(minimum, abs=1e-4)


def test_adam_or_momentum_at_the_sites_is_refused_in_local_mode() -> None:
    for fields in ({"optimizer": "adam"}, {"momentum": 0.9}):
        with pytest.raises(ConfigError, match="expected plain sgd in local mode"):
            GradientAlignment(**fields)
        GradientAlignment(mode="gradient", **fields)
        GradientAlignment(strength=0.0, **fields)


@pytest.mark.parametrize("start", [(0.3, -0.2), (0.1, 0.7), (-1.3, 0.4)])
@pytest.mark.parametrize("mode", ["local", "gradient", "server"])
def test_equal_gradients_are_not_corrected(mode: Any, start: tuple[float, float]) -> None:
    # With enough points, the sums of the three sites differ in the last bit, because the orders of batches differ.
    points = ((1.0, 2), (3.0, 1), (2.3, 0), (-1.7, 3), (0.53, 1), (1.1, 1), (0.9, 2))
    task = toy.task(dict.fromkeys("abc", points))
    fields = SGD | {"mode": mode, "server_lr": 0.1 if mode == "gradient" else 1.0}
    aligned, metrics = one_round(GradientAlignment(strength=0.5, shift=0.5, **fields), at(*start), task)
    assert aligned == pytest.approx(
        one_round(GradientAlignment(strength=0.0, shift=0.0, **fields), at(*start), task)[0], rel=1e-5
    )
    assert metrics["alignment_loss"] == pytest.approx(0, abs=1e-10)
    assert metrics["gradient_cosine"] == pytest.approx(1)


def test_equal_hessians_are_not_corrected() -> None:
    task = toy.task(SAME_X)
    aligned, metrics = one_round(plain(), at(0.3, -0.2), task)
    assert aligned == pytest.approx(one_round(plain(strength=0.0), at(0.3, -0.2), task)[0], rel=1e-6)
    assert metrics["alignment_loss"] > 0.1
    assert metrics["correction_ratio"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mode", ["local", "gradient", "server"])
def test_the_names_of_sites_are_irrelevant(mode: Any) -> None:
    mine = GradientAlignment(mode=mode, strength=0.5, shift=0.5, server_lr=0.1 if mode == "gradient" else 1.0, **SGD)
    three = POINTS | {"c": ((1.5, 1),)}
    renamed = {"a": three["c"], "b": three["a"], "c": three["b"]}
    found = [one_round(mine, at(0.3, -0.2), toy.task(points))[0] for points in (three, renamed)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("mode", ["local", "gradient", "server"])
def test_a_single_site_is_not_aligned(mode: Any) -> None:
    task = toy.task({"a": POINTS["a"]})
    _, metrics = one_round(GradientAlignment(mode=mode, strength=0.5, shift=0.5, **SGD), at(0.3, -0.2), task)
    assert metrics["alignment_loss"] == pytest.approx(0, abs=1e-10)
    assert (metrics["gradient_cosine"], metrics["correction_ratio"]) == (1, 0)


class HalfFrozen(nn.Sequential):
    """A frozen line, a normalisation with buffers, and a line that trains."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1).requires_grad_(False), nn.BatchNorm1d(1), toy.Line())


@pytest.mark.parametrize("product", ["exact", "difference"])
def test_frozen_layers_have_no_gradient_and_buffers_are_averaged(product: Any) -> None:
    task = toy.task(POINTS, network=HalfFrozen)
    mine, fleet = plain(product=product), LocalFleet(task, rounds=1)
    start = mine.init(task)
    fleet.accounting.open_round(0)
    replies = fleet.map(mine.first, start.model)
    sent = [reply.payload for reply in replies.values()]
    assert all(not model["0.weight"].any() and not model["0.bias"].any() for model in sent)
    state, _ = mine.round(fleet.at(task.inside), start)
    assert np.array_equal(state.model["0.weight"], start.model["0.weight"])
    mean = SHARE[0] * sent[0]["1.running_mean"] + SHARE[1] * sent[1]["1.running_mean"]
    assert state.model["1.running_mean"] == pytest.approx(mean, rel=1e-6)
    assert "1.running_mean" not in sent[0].parameters


def test_the_distance_of_gradients_is_a_maximum_mean_discrepancy() -> None:
    theta = np.array([0.3, -0.2])
    each = {name: np.array([gradient([point], theta) for point in points]) for name, points in POINTS.items()}
    kernel = {(i, j): (each[i] @ each[j].T).mean() for i in "ab" for j in "ab"}
    distance = np.square(each["a"].mean(0) - each["b"].mean(0)).sum()
    assert kernel["a", "a"] + kernel["b", "b"] - 2 * kernel["a", "b"] == pytest.approx(distance, rel=1e-12)
    rows = [Model.of({"g": each[name].mean(0)}) for name in "ab"]
    assert weighted_variance(gram_matrix(rows), SHARE) == pytest.approx(SHARE.prod() * distance, rel=1e-12)


def test_server_mode_moves_away_from_an_outlier() -> None:
    points = {"a": ((1.0, 1),), "b": ((1.0, 1), (1.1, 1)), "c": ((0.9, 1),), "d": ((1.0, 90),)}
    task = toy.task(points)
    mean_step, _ = one_round(GradientAlignment(mode="server", shift=0.0, **SGD), at(0, 0), task)
    turned, _ = one_round(GradientAlignment(mode="server", bandwidth=0.3, **SGD), at(0, 0), task)
    assert mean_step[0] > 1
    assert 0 < turned[0] < 0.2


def test_alignment_reduces_the_spread_of_gradients_at_equal_loss() -> None:
    points = {"a": ((3.0, 3), (1.0, 1)), "b": ((0.2, 3), (-0.5, 1)), "c": ((1.0, 0), (-2.0, 2))}
    task = toy.task(points)

    def spread(strength: float) -> list[float]:
        """The alignment loss at the rounds in which the training loss falls below 1.6, 1.2 and 0.8."""
        mine = plain(strength=strength, server_lr=0.03)
        rounds = list(federate(mine, task, LocalFleet(task, rounds=70), rounds=70))
        losses, spreads = [-(r.loss or 0.0) for r in rounds], [r.metrics["alignment_loss"] for r in rounds]
        assert losses == sorted(losses)
        return [float(np.interp(-level, losses, spreads)) for level in (1.6, 1.2, 0.8)]

    courses = [spread(strength) for strength in (0.0, 0.01, 0.03)]
    assert all(later < before for one, other in pairwise(courses) for before, later in zip(one, other, strict=True))


def test_the_server_may_use_momentum_and_adam() -> None:
    task = toy.task(POINTS)
    for fields in ({"server_momentum": 0.9}, {"server_optimizer": "adam", "server_lr": 0.05}):
        mine: GradientAlignment = replace(plain(strength=0.0), **fields)
        rounds = list(federate(mine, task, LocalFleet(task, rounds=3), rounds=3))
        theta, vectors = torch.zeros(2, requires_grad=True), []
        optimizer = (
            torch.optim.Adam([theta], 0.05)
            if "server_optimizer" in fields
            else torch.optim.SGD([theta], 0.1, momentum=0.9)
        )
        for _ in range(3):
            theta.grad = torch.from_numpy(by_hand(theta.detach().numpy().astype(float))[0]).float()
            optimizer.step()
            vectors.append(theta.detach().numpy().copy())
        assert [vector(r.state.model) for r in rounds] == [pytest.approx(v, rel=1e-4) for v in vectors]


def test_bytes_are_twice_those_of_fedavg_with_two_calls() -> None:
    task, size = toy.task(POINTS), 8
    for mine, times in ((plain(), 2), (GradientAlignment(), 2), (GradientAlignment(mode="server"), 1)):
        (only,) = federate(mine, task, LocalFleet(task, rounds=1), rounds=1)
        assert set(only.traffic.up.values()) == set(only.traffic.down.values()) == {times * size}


@dataclass(frozen=True, kw_only=True)
class FailsInSecondCall(GradientAlignment):
    """Site a fails in the second call of a round."""

    def second(self, site: Any, average: Model) -> Any:
        if site.name == "a":
            raise OSError("no line")
        return super().second(site, average)


def test_no_correction_if_a_site_fails_in_the_second_call() -> None:
    task = toy.task(POINTS)
    fleet = LocalFleet(task, rounds=2)
    fleet.options = replace(fleet.options, min_replies=1)
    mine = FailsInSecondCall(**SGD)
    rounds = list(federate(mine, task, fleet, rounds=2))
    assert [r.metrics["correction_ratio"] for r in rounds] == [0, 0]
    plain, _ = one_round(GradientAlignment(strength=0.0, **SGD), mine.init(task))
    assert vector(rounds[0].state.model) == pytest.approx(plain)
    assert len(rounds[1].failures) == 1


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    task = toy.task(POINTS)
    with pytest.raises(SiteError, match="the gradient is not finite; lower the server's learning rate"):
        list(federate(plain(server_lr=1e3), task, LocalFleet(task, rounds=60), rounds=60))


def test_a_single_site_keeps_no_client_state() -> None:
    task = toy.task(POINTS)
    fleet = LocalFleet(task, rounds=3)
    list(federate(GradientAlignment(**SGD), task, fleet, rounds=3, cohort=1))
    assert all(fleet.client_state(site) is None for site in task.inside)


def test_a_site_that_failed_in_the_second_call_continues_in_the_next_round() -> None:
    task = toy.task(POINTS, network=toy.Scaled)
    mine, fleet = GradientAlignment(buffers="local", **SGD), LocalFleet(task, rounds=2)
    state = mine.init(task)
    fleet.accounting.open_round(0)
    fleet.map(mine.first, state.model)
    fleet.accounting.open_round(1)
    after, _ = mine.round(fleet.at(task.inside), state)
    assert np.isfinite(vector_of(after.model)).all()


def vector_of(model: Model) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in model.values()])
