"""FedRep by hand: the output is w (u x) + b; u, from 1, is shared, and the head (w, b), from 0, stays at the site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from algorithms.fedrep import FedRep
from algorithms.localonly import LocalOnly
from raysim import ConfigError, LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "head_epochs": 1}


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False), toy.Line())
        nn.init.ones_(self[0].weight)


def run(rounds: int = 2, task: Any = None, cohort: float | int = 1.0, **fields: Any) -> tuple[Any, LocalFleet]:
    task = task or toy.two_sites(Two)
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(FedRep(**SGD | fields), task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def after(u: float, w: float, b: float, x: float) -> tuple[float, float, float]:
    """u, w and b after one step of the head at (x, 2) and one step of u, with lr 0.1."""
    r = w * u * x + b - 2
    w, b = w - 0.1 * r * u * x, b - 0.1 * r
    r = w * u * x + b - 2
    return u - 0.1 * r * w * x, w, b


def test_the_head_is_trained_first_then_the_other_layers() -> None:
    # Heads: r = -2, a to (0.2, 0.2) and b, whose u x is 2, to (0.4, 0.2). Then a: r = -1.6, du = -1.6 * 0.2;
    # b: r = -1, du = -1 * 0.4 * 2.
    end, fleet = run(rounds=1)
    assert toy.line(fleet.client_state("a")) == pytest.approx((0.2, 0.2))
    assert toy.line(fleet.client_state("b")) == pytest.approx((0.4, 0.2))
    assert end.state.shared["0.weight"].item() == pytest.approx((1.032 + 3 * 1.08) / 4)


def test_the_second_round_starts_from_the_sites_own_head() -> None:
    a, b = after(1.068, 0.2, 0.2, x=1), after(1.068, 0.4, 0.2, x=2)
    end, fleet = run()
    assert toy.line(fleet.client_state("a")) == pytest.approx(a[1:])
    assert toy.line(fleet.client_state("b")) == pytest.approx(b[1:])
    assert end.state.shared["0.weight"].item() == pytest.approx((a[0] + 3 * b[0]) / 4)


def test_head_epochs_are_separate() -> None:
    # Two passes: a from (0.2, 0.2) by r = -1.6 to (0.36, 0.36); then r = -1.28 and du = -1.28 * 0.36, twice.
    end, fleet = run(rounds=1, task=toy.task({"a": toy.A}, network=Two), head_epochs=2, steps=2)
    assert toy.line(fleet.client_state("a")) == pytest.approx((0.36, 0.36))
    u = 1 + 0.1 * 1.28 * 0.36
    assert end.state.shared["0.weight"].item() == pytest.approx(u - 0.1 * (0.36 * u + 0.36 - 2) * 0.36)


def test_both_losses_are_reported() -> None:
    end, _ = run(rounds=1)
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    assert metrics == {"loss": pytest.approx(1.28), "head_loss": pytest.approx(2.0)}


def test_only_the_representation_is_sent() -> None:
    end, fleet = run()
    assert end.traffic.up == end.traffic.down == {"a": 4, "b": 4}
    assert set(end.state.shared) == {"0.weight"}
    assert set(fleet.client_state("a")) == {"1.weight", "1.bias"}


def test_no_predictor_without_a_head() -> None:
    task = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"], network=Two)
    end, _ = run(rounds=1, task=task)
    evaluated = {(s.site, s.metric) for s in end.scores if s.split == "test"}
    assert evaluated == {("a", "distance"), ("b", "distance")}
    assert end.state.model is None
    end, fleet = run(rounds=1, cohort=1)
    assert {s.site for s in end.scores} == set(end.cohort)
    assert [site for site in "ab" if fleet.client_state(site) is not None] == list(end.cohort)


def test_joint_is_fedper_and_takes_one_step_of_both_parts() -> None:
    # From u = 1, w = b = 0 the gradient of u is zero, so round 1 moves the heads only, to (0.2, 0.2) and (0.4, 0.2).
    # Round 2: a: r = -1.6, dw = -1.6, db = -1.6, du = -1.6 * 0.2. b: r = -1, dw = -1 * 2, db = -1, du = -1 * 0.4 * 2.
    end, fleet = run(joint=True)
    assert toy.line(fleet.client_state("a")) == pytest.approx((0.36, 0.36))
    assert toy.line(fleet.client_state("b")) == pytest.approx((0.6, 0.3))
    assert end.state.shared["0.weight"].item() == pytest.approx((1.032 + 3 * 1.08) / 4)
    assert {s.metric for s in end.scores if s.split == "train"} == {"loss"}
    assert end.traffic.up == end.traffic.down == {"a": 4, "b": 4}


def test_fedper_with_one_site_is_bit_identical_to_local_training() -> None:
    task = toy.task({"b": toy.B}, network=Two, batch_size=2)
    end, fleet = run(rounds=3, task=task, joint=True, epochs=2)
    alone = LocalFleet(task, rounds=3)
    list(federate(LocalOnly(optimizer="sgd", momentum=0.0, lr=0.1, epochs=2), task, alone, rounds=3))
    assert fleet.client_state("b") | end.state.shared == alone.client_state("b")


def test_the_head_may_be_named() -> None:
    # The first layer stays at the site and has no gradient at w = 0, so the line equals FedAvg after a step at u = 1.
    end, fleet = run(rounds=1, head="0")
    assert set(fleet.client_state("a")) == {"0.weight"}
    assert toy.line(end.state.shared) == pytest.approx((0.35, 0.2))
    assert end.traffic.up == {"a": 8, "b": 8}


@pytest.mark.parametrize("head", ["2", "", "1.wei"])
def test_an_unknown_head_is_refused_with_the_names_of_layers(head: str) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm.head={head}: expected .* layers of the network: 0, 1$"):
        FedRep(head=head).init(toy.two_sites(Two))


def test_a_head_of_all_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="matches some layers, but not all; layers of the network: "):
        FedRep().init(toy.two_sites())


def test_frozen_layers_stay_frozen() -> None:
    class Frozen(Two):
        def __init__(self) -> None:
            super().__init__()
            self.insert(0, nn.Linear(1, 1, bias=False))
            nn.init.ones_(self[0].weight).requires_grad_(False)

    end, _ = run(rounds=1, task=toy.task({"a": toy.A}, network=Frozen))
    assert end.state.shared["0.weight"].item() == 1
    assert end.state.shared["1.weight"].item() == pytest.approx(1.032)


def test_buffers_of_the_representation_follow_the_policy() -> None:
    class Normed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.insert(0, nn.BatchNorm1d(1))

    pair: toy.Points = ((1, 0), (3, 1))
    task = toy.task({"a": pair}, network=Normed)
    end, fleet = run(rounds=1, task=task)
    assert end.state.shared["0.num_batches_tracked"] == 2  # one batch for the head, one for the other layers
    end, fleet = run(task=task, buffers="local")
    assert len(end.state.shared.buffers) == 0
    assert fleet.client_state("a")["0.num_batches_tracked"] == 4
    assert torch.isfinite(torch.from_numpy(fleet.client_state("a")["2.weight"].copy())).all()
