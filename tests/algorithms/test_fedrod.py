"""FedRoD by hand: the output is w (u x) + b; (w, b), from 0, is the generic head, and each site has a personal one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.fedrod import FedRoD, class_frequencies, shifted_loss
from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False), toy.Line())
        nn.init.ones_(self[0].weight)


def run(rounds: int = 1, task: Any = None, cohort: float | int = 1.0, **fields: Any) -> tuple[Any, LocalFleet]:
    task = task or toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"], network=Two)
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(FedRoD(**SGD | {"gamma": 0.0} | fields), task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def scores(end: Any) -> dict[tuple[str, str], float]:
    return {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}


def personal(fleet: LocalFleet, site: str) -> tuple[float, float]:
    return toy.line(fleet.client_state(site).head)


def test_the_personal_head_is_trained_on_top_of_the_generic_head() -> None:
    # Generic: a to (0.2, 0.2), b to (0.4, 0.2), u stays. Personal: a has r = -1.6, b has r = -1.
    end, fleet = run()
    assert toy.line(end.state.model) == pytest.approx((0.35, 0.2))
    assert personal(fleet, "a") == pytest.approx((0.16, 0.16))
    assert personal(fleet, "b") == pytest.approx((0.2, 0.1))
    metrics = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("a", "train")}
    assert metrics == {"loss": pytest.approx(2.0), "personal_loss": pytest.approx(1.6**2 / 2)}


def test_the_second_round_starts_from_the_sites_personal_head() -> None:
    # a at u = 1, (0.35, 0.2): r = -1.45; u to 1 + 0.1 * 1.45 * 0.35, (w, b) to (0.495, 0.345). Then with (0.16, 0.16):
    u, w, b = 1 + 0.1 * 1.45 * 0.35, 0.495, 0.345
    r = (w + 0.16) * u + b + 0.16 - 2
    _, fleet = run(rounds=2)
    assert personal(fleet, "a") == pytest.approx((0.16 - 0.1 * r * u, 0.16 - 0.1 * r))


def test_inside_sites_predict_with_both_heads_and_others_with_the_generic_head() -> None:
    found = scores(run()[0])
    assert found["a", "distance"] == pytest.approx(2 - (0.35 + 0.16 + 0.2 + 0.16))
    assert found["b", "distance"] == pytest.approx(2 - (2 * (0.35 + 0.2) + 0.2 + 0.1))
    assert found["a", "distance@global"] == pytest.approx(1.45)
    assert found["x", "distance"] == found["x", "distance@global"] == pytest.approx(1.1)


def test_a_site_that_was_never_sampled_predicts_with_the_generic_head() -> None:
    end, fleet = run(cohort=1)
    (other,) = {"a", "b"} - set(end.cohort)
    assert fleet.client_state(other) is None
    assert scores(end)[other, "distance"] == scores(end)[other, "distance@global"]


def test_without_class_frequencies_the_global_model_is_bit_identical_to_fedavg() -> None:
    task = toy.two_sites(Two)
    end, _ = run(rounds=3, task=task, epochs=2)
    *_, plain = federate(FedAvg(epochs=2, **SGD), task, LocalFleet(task, rounds=3), rounds=3)
    assert end.state.model == plain.state


class Classifier(nn.Sequential):
    """Logits w_c x + b_c of two classes, from zero, behind a layer that is the identity."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), nn.Linear(1, 2))
        for parameter, value in zip(self.parameters(), (1, 0, 0, 0), strict=True):
            nn.init.constant_(parameter, value)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels[:, 0])


def test_the_generic_head_is_trained_with_the_balanced_softmax() -> None:
    # Site a has class 0 three times and class 1 once, so p = softmax(log q) = (3/4, 1/4) at logits 0 and the gradient
    # of the shift of class c is the mean of p_c - [y = c] = 0: only w changes. The personal head has p = (1/2, 1/2).
    points: toy.Points = ((1, 0), (2, 0), (3, 0), (4, 1))
    task = replace(toy.task({"a": points}, network=Classifier), classes=2, loss=cross_entropy)
    end, fleet = run(task=task, gamma=1.0)
    x, y = np.array(points).T
    errors = np.array([3 / 4, 1 / 4]) - np.eye(2)[y]
    weight = -0.1 * (errors * x[:, None]).mean(0)
    assert end.state.model["1.weight"].ravel() == pytest.approx(weight, rel=1e-5)
    assert end.state.model["1.bias"] == pytest.approx([0, 0], abs=1e-7)
    logits = x[:, None] * weight
    errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[y]
    head = fleet.client_state("a").head
    assert head["1.bias"] == pytest.approx(-0.1 * errors.mean(0), rel=1e-5)
    assert head["1.weight"].ravel() == pytest.approx(-0.1 * (errors * x[:, None]).mean(0), rel=1e-5)


def test_a_class_that_the_site_lacks_gives_finite_values() -> None:
    task = replace(toy.task({"a": ((1, 0), (2, 0))}, network=Classifier), classes=2, loss=cross_entropy)
    end, _ = run(rounds=2, task=task, gamma=1.0)
    assert all(np.isfinite(array).all() for array in end.state.model.values())
    assert end.state.model["1.weight"].ravel() == pytest.approx([0, 0], abs=1e-6)  # class 0 has p = 1 already


def test_frequencies_are_those_of_known_labels() -> None:
    labels = np.array([[[0, 1], [1, 1]], [[2, 255], [255, 1]]], np.uint8)[:, None]
    assert class_frequencies(labels, 4).tolist() == [1 / 6, 4 / 6, 1 / 6, 0]


def test_the_shift_is_added_to_the_logits_of_every_resolution() -> None:
    shift, labels = torch.tensor([1.0, 2.0]), torch.zeros(3, 1, 4, 4)
    single, stacked = torch.zeros(3, 2, 4, 4), torch.zeros(3, 5, 2, 4, 4)
    for outputs in (single, stacked):
        shifted = shifted_loss(lambda o, _: o, shift, outputs, labels)
        assert shifted.shape == outputs.shape
        assert shifted[..., 0, :, :].eq(1).all()
        assert shifted[..., 1, :, :].eq(2).all()
    several = shifted_loss(lambda o, _: torch.stack([part.mean() for part in o]), shift, [single, single], labels)
    assert several.tolist() == [1.5, 1.5]


def test_only_the_model_and_the_name_of_its_layer_are_sent() -> None:
    traffic = run()[0].traffic
    assert traffic.up == {"a": 12, "b": 12}
    assert traffic.down == {"a": 13, "b": 13}


def test_frozen_layers_stay_frozen_and_buffers_follow_the_policy() -> None:
    class Normed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.insert(0, nn.BatchNorm1d(1))
            self[1].requires_grad_(False)

    task = toy.task({"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}, network=Normed)
    end, fleet = run(rounds=2, task=task, buffers="local")
    assert end.state.model["1.weight"].item() == 1
    assert set(fleet.client_state("a").head) == {"2.weight", "2.bias"}
    # The epoch of the personal head does not count.
    assert fleet.client_state("a").buffers["0.num_batches_tracked"] == 2
