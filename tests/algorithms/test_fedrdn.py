"""FedRDN: statistics of images by hand, random normalisation, and the limit FedAvg."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.fedrdn import FedRDN, RandomNormalization, Statistics, measured, normalize, shift
from raysim import ConfigError, Data, LocalFleet, Split, Task, federate
from raysim.training import OutsideAdaptation
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
Images = dict[str, list[tuple[tuple[float, float], int]]]


class Line(nn.Module):
    """w times the mean of the image, plus b; from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.line = toy.Line()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.line(x[:, :, 0, :1])[:, :, 0]
        return outputs


def split(images: list[tuple[tuple[float, float], int]]) -> Split:
    """Images (1, 1, 2) with labels."""
    plain = toy.split(tuple((0.0, y) for _, y in images))
    return replace(plain, inputs=np.array([x for x, _ in images], np.float32).reshape(-1, 1, 1, 2))


def image_task(images: Images, outside: tuple[str, ...] = (), network: Any = Line) -> Task:
    empty = split([])

    def opened(name: str) -> Data:
        some = split(images[name])
        return Data(train=empty if name in outside else some, val=empty, test=some, unlabelled=empty)

    plain = toy.task({s: tuple((0.0, y) for _, y in i) for s, i in images.items()}, outside, network, batch_size=2)
    return replace(plain, shape=(1, 1, 2), open=opened)


# Site a: mean 2, deviation 1. Site b: means 2 and 6, deviations 2 and 4, so mean 4, deviation 3.
IMAGES: Images = {"a": [((1, 3), 2)], "b": [((0, 4), 1), ((10, 2), 0)]}


def run(algorithm: Any, images: Images = IMAGES, rounds: int = 2, **options: Any) -> tuple[Any, LocalFleet]:
    task = image_task(images, options.pop("outside", ()), options.pop("network", Line))
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, **options)
    return end, fleet


def test_statistics_are_means_over_images() -> None:
    found = measured(split(IMAGES["b"]))
    assert (found.mean.tolist(), found.deviation.tolist()) == ([4], [3])
    constant = measured(split([((5, 5), 0)]))
    assert (constant.mean.tolist(), constant.deviation.tolist()) == ([5], [1])


def test_the_shift_between_sites_is_logged() -> None:
    # Means 2 and 4, deviations 1 and 3.
    assert shift([measured(split(images)) for images in IMAGES.values()]) == 1
    assert run(FedRDN(**SGD))[0].metrics == {"shift": 1}


def test_channels_are_normalised_separately_and_images_by_their_index() -> None:
    statistics = [
        Statistics(np.float32([1, 2]), np.float32([1, 2])),
        Statistics(np.float32([0, 10]), np.float32([5, 5])),
    ]
    x = torch.tensor([[[1.0, 3], [2, 6]], [[5, 10], [10, 15]]])
    expected = torch.tensor([[[0.0, 2], [0, 2]], [[1, 2], [0, 1]]])
    assert normalize(x, statistics, np.array([0, 1])).equal(expected)
    volume = normalize(x[..., None, None], statistics, np.array([0, 1]))
    assert volume.equal(expected[..., None, None])


def test_every_site_is_drawn_and_the_augmentation_runs_first() -> None:
    task = replace(image_task(IMAGES), augment=lambda x, y, _: (x + 100, y))
    statistics = [Statistics(np.float32([m]), np.float32([1])) for m in (0, 1, 2)]
    x, y = torch.zeros(300, 1, 1, 2), torch.zeros(300, 1)
    found = RandomNormalization(task, statistics)(x, y, np.random.RandomState(0))[0]
    values, counts = found[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == [98, 99, 100]
    assert counts.min() > 70


def test_a_round_by_hand() -> None:
    end, _ = run(FedRDN(**SGD), {**IMAGES, "b": [((3, 5), 1)]}, rounds=1)  # b: mean 4, deviation 1
    assert {s: (float(v.mean[0]), float(v.deviation[0])) for s, v in end.state.statistics.items()} == {
        "a": (2, 1),
        "b": (4, 1),
    }
    # a: (1 - 2) / 1 or (1 - 4) / 1; b: 3 - 2 or 3 - 4. From zero the residuals are -2 and -1.
    w, b = toy.line(end.state.model)
    possible = {(0.2 * xa + 0.1 * xb) / 2 for xa in (-1, -3) for xb in (1, -1)}
    assert any(w == pytest.approx(value, rel=1e-5) for value in possible)
    assert b == pytest.approx(0.15)


def test_each_site_predicts_with_its_own_statistics() -> None:
    end, _ = run(FedRDN(**SGD), {**IMAGES, "x": [((0, 20), 1)]}, outside=("x",), rounds=1)
    w, b = toy.line(end.state.model)
    found = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert found["a", "distance"] == pytest.approx(abs(-w + b - 2), rel=1e-5)
    assert found["x", "distance"] == pytest.approx(abs(-w + b - 1), rel=1e-5)  # (0 - 10) / 10
    assert found["x", "distance@global"] == pytest.approx(abs(b - 1), rel=1e-5)


def test_an_adapted_model_sees_normalised_images() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.line = nn.BatchNorm2d(1), Line()

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.line(self.norm(x))
            return torch.cat([outputs, -outputs], 1)

    seen: dict[str, list[float]] = {}
    for factor in (1, 10):
        images: Images = {"a": [((1, 3), 1), ((2, 7), 0)], "x": [((factor, 3 * factor), 1), ((2 * factor, 0), 0)]}
        algorithm = FedRDN(**SGD, outside=OutsideAdaptation(name="tent", lr=0.1))
        end, _ = run(algorithm, images, outside=("x",), network=Normed)
        seen[str(factor)] = [s.value for s in end.scores if (s.site, s.metric) == ("x", "distance")]
    assert seen["1"] == pytest.approx(seen["10"], rel=1e-3)


def test_statistics_are_sent_once_and_sites_that_join_later_are_added() -> None:
    task = image_task(IMAGES)
    algorithm, fleet = FedRDN(**SGD), LocalFleet(task, rounds=3)
    state = algorithm.init(task)
    known = []
    for sites in (["b"], ["a", "b"], ["a"]):
        state, _ = algorithm.round(fleet.at(sites), state)
        known.append(list(state.statistics))
    assert known == [["b"], ["a", "b"], ["a", "b"]]
    end, _ = run(FedRDN(**SGD), rounds=1)
    assert end.traffic.up == {"a": 16, "b": 16}  # the model and two numbers
    assert end.traffic.down == {"a": 24, "b": 24}
    assert run(FedRDN(**SGD), rounds=2)[0].traffic.up == {"a": 8, "b": 8}


@pytest.mark.parametrize("fields", [SGD, {"lr": 0.01}])
def test_on_images_that_are_normalised_already_it_is_bit_identical_to_fedavg(fields: dict[str, Any]) -> None:
    images: Images = {"a": [((-1, 1), 1), ((1, -1), 2), ((-1, 1), 0)], "b": [((1, -1), 1)]}
    ours, _ = run(FedRDN(epochs=3, **fields), images)
    assert ours.state.model == run(FedAvg(epochs=3, **fields), images)[0].state


def test_tables_are_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"algorithm=fedrdn .* shape \(1,\); expected \(C, \*space\); use a task"):
        FedRDN().init(toy.two_sites())
