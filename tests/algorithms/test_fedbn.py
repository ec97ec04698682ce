"""FedBN by hand: a batch normalisation before a line from w = b = 0; x at each site is normalised to -1 and 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN, norm_names
from raysim import LocalFleet, federate, weights
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
NEAR: toy.Points = ((1, 0), (3, 1))
FAR: toy.Points = ((5, 1), (7, 3))
NORM = {"0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"}


def run(rounds: int = 2, task: Any = None, cohort: float | int = 1.0, **fields: Any) -> tuple[Any, LocalFleet]:
    task = task or toy.task({"a": NEAR, "b": FAR, "x": FAR}, outside=["x"], network=toy.Scaled)
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(FedBN(**SGD | fields), task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def norm(fleet: LocalFleet, site: str) -> tuple[float, float]:
    return fleet.client_state(site)["0.weight"].item(), fleet.client_state(site)["0.bias"].item()


def test_the_first_round_changes_only_the_line() -> None:
    # r = -y: at a (0, -1), so dw = -0.5 and db = -0.5; at b (-1, -3), dw = -1, db = -2. With w = 0 no norm changes.
    end, fleet = run(rounds=1)
    assert toy.line(end.state.shared) == pytest.approx((0.075, 0.125), rel=1e-4)
    assert norm(fleet, "a") == norm(fleet, "b") == (1, 0)


def test_the_second_round_changes_the_norm_of_each_site() -> None:
    # Outputs 0.05 and 0.2. a: r = (0.05, -0.8), so mean r x = -0.425 and mean r = -0.375; b: r = (-0.95, -2.8), so
    # -0.925 and -1.875. These are the gradients of the line; times w = 0.075 they are those of the norm.
    end, fleet = run()
    assert norm(fleet, "a") == pytest.approx((1 + 0.1 * 0.075 * 0.425, 0.1 * 0.075 * 0.375), rel=1e-4)
    assert norm(fleet, "b") == pytest.approx((1 + 0.1 * 0.075 * 0.925, 0.1 * 0.075 * 1.875), rel=1e-4)
    assert toy.line(end.state.shared) == pytest.approx((0.075 + 0.0675, 0.125 + 0.1125), rel=1e-4)


def test_statistics_also_stay_at_the_site() -> None:
    _, fleet = run()
    assert set(fleet.client_state("a")) == NORM
    means = {site: fleet.client_state(site)["0.running_mean"].item() for site in "ab"}
    assert means == pytest.approx({"a": 0.1 * 2 + 0.9 * 0.2, "b": 0.1 * 6 + 0.9 * 0.6})


@pytest.mark.parametrize("buffers", ["average", "local", "reset"])
def test_only_the_line_is_sent(buffers: str) -> None:
    end, fleet = run(buffers=buffers)
    assert end.traffic.up == end.traffic.down == {"a": 8, "b": 8}
    assert set(end.state.shared) == {"1.weight", "1.bias"}
    assert fleet.client_state("a")["0.num_batches_tracked"] == (1 if buffers == "reset" else 2)


def test_an_outside_site_uses_the_first_norm_and_batch_statistics() -> None:
    # x = 5, 7 is normalised to -1, 1; the line (0.1425, 0.2375) predicts 0.095 and 0.38 for y = 1 and 3.
    end, _ = run()
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert set(end.state.model) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert values["x", "distance"] == values["x", "distance@global"] == values["b", "distance@global"]
    assert values["x", "distance"] == pytest.approx((0.905 + 2.62) / 2, rel=1e-4)
    assert values["b", "distance"] != values["b", "distance@global"]


def test_without_normalisation_it_is_bit_identical_to_fedavg() -> None:
    end, fleet = run(task=toy.two_sites(), epochs=3)
    task = toy.two_sites()
    *_, plain = federate(FedAvg(**SGD, epochs=3), task, LocalFleet(task, rounds=2), rounds=2)
    assert end.state.model == plain.state
    assert len(fleet.client_state("a")) == 0


@pytest.mark.parametrize("cohort", [1.0, 1])
def test_silobn_is_bit_identical_to_fedavg_with_local_statistics(cohort: float | int) -> None:
    # The buffers of the toy network are all running statistics.
    end, fleet = run(rounds=3, local="statistics", epochs=2, cohort=cohort)
    task = toy.task({"a": NEAR, "b": FAR, "x": FAR}, outside=["x"], network=toy.Scaled)
    other = LocalFleet(task, rounds=3)
    *_, plain = federate(FedAvg(**SGD, epochs=2, buffers="local"), task, other, rounds=3, cohort=cohort)
    assert end.state.model == end.state.shared == plain.state
    assert [fleet.client_state(site) for site in "ab"] == [other.client_state(site) for site in "ab"]
    assert end.scores == plain.scores
    assert set(end.traffic.up.values()) == {16}


def test_silobn_shares_scales_and_shifts() -> None:
    # The gradients of the second round are those of the test of FedBN, weighted 1 : 1.
    end, fleet = run(local="statistics")
    scale, shift = 0.1 * 0.075 * (0.425 + 0.925) / 2, 0.1 * 0.075 * (0.375 + 1.875) / 2
    assert end.state.shared["0.weight"].item() == pytest.approx(1 + scale, rel=1e-4)
    assert end.state.shared["0.bias"].item() == pytest.approx(shift, rel=1e-4)
    assert set(fleet.client_state("a")) == NORM - {"0.weight", "0.bias"}
    assert fleet.client_state("b")["0.running_mean"].item() == pytest.approx(0.1 * 6 + 0.9 * 0.6)


def test_a_site_that_was_never_sampled_predicts_with_the_global_model() -> None:
    end, fleet = run(rounds=1, cohort=1)
    (sampled,) = end.cohort
    (other,) = {"a", "b"} - {sampled}
    assert fleet.client_state(other) is None
    values = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert values[other, "distance"] == values[other, "distance@global"]


def test_every_kind_of_normalisation_is_found() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 1)
            self.batch, self.instance = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)
            self.plain, self.group, self.layer = nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)
            self.register_buffer("grid", torch.zeros(3))

    net = Kinds()
    found = {name.partition(".")[0] for name in norm_names(weights(net), net)}
    assert found == {"batch", "instance", "group", "layer"}
