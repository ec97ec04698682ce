"""ELCFS: amplitudes and interpolation against numpy, the episode by hand, the exchange, and the limit FedAvg."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.elcfs import ELCFS, Broadcast, interpolate, low_frequencies, spectrum, step_ahead
from algorithms.fedavg import FedAvg
from raysim import ConfigError, Data, LocalFleet, Task, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
# Images of one value, so that the only frequency exchanged is the mean: two at a, one at b.
IMAGES = {"a": [(1.0, 2), (1.0, 2)], "b": [(3.0, 2)]}


class MeanLine(nn.Module):
    """w times the mean of the image, plus b; from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.line = toy.Line()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.line(x.mean((2, 3)))
        return outputs


def image_task(images: dict[str, list[tuple[float, int]]] = IMAGES) -> Task:
    """Constant images (1, 4, 4)."""
    points = {site: tuple(pairs) for site, pairs in images.items()}

    def opened(name: str) -> Data:
        plain = toy.split(points[name])
        some = replace(plain, inputs=np.broadcast_to(plain.inputs[..., None, None], (len(plain), 1, 4, 4)).copy())
        empty = replace(toy.split(()), inputs=np.zeros((0, 1, 4, 4), np.float32))
        return Data(train=some, val=empty, test=some, unlabelled=empty)

    return replace(toy.task(points, network=MeanLine), shape=(1, 4, 4), open=opened)


def run(algorithm: Any, rounds: int = 2, task: Any = None, cohort: float | int = 1.0) -> tuple[Any, LocalFleet]:
    task = task or image_task()
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def by_numpy(image: Any, other: Any, lam: float, reach: int) -> Any:
    """One channel of an image with low amplitudes moved to those of `other`, entry by entry."""
    found, theirs = np.fft.fftn(image), np.fft.fftn(other)
    frequencies = np.meshgrid(*(np.rint(np.fft.fftfreq(n) * n) for n in image.shape), indexing="ij")
    low = np.max(np.abs(frequencies), axis=0) <= reach
    amplitude = np.where(low, (1 - lam) * np.abs(found) + lam * np.abs(theirs), np.abs(found))
    mixed = np.fft.ifftn(amplitude * np.exp(1j * np.angle(found)))
    assert np.abs(mixed.imag).max() < 1e-6
    return mixed.real


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (6, 7, 8)])
def test_interpolation_equals_an_independent_computation(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    images, others = rng.normal(1, 1, (2, 2, 2, *size)).astype(np.float32)
    lam, window = np.float32([0.3, 1.0]), 0.26
    amplitudes = low_frequencies(spectrum(torch.from_numpy(others)), window).abs()
    reach = int(window * min(size))
    assert amplitudes.shape == (2, 2, *[2 * reach + 1] * len(size))
    found = interpolate(torch.from_numpy(images), amplitudes, torch.from_numpy(lam), window)
    for image, channel in np.ndindex(2, 2):
        expected = by_numpy(images[image, channel], others[image, channel], lam[image], reach)
        assert found[image, channel].numpy() == pytest.approx(expected, abs=1e-5)


def test_lambda_0_keeps_the_image_and_window_0_changes_only_the_mean() -> None:
    images = torch.rand(3, 1, 8, 8)
    amplitudes = low_frequencies(spectrum(images + 1), 0.3).abs()
    assert interpolate(images, amplitudes, torch.zeros(3), 0.3).numpy() == pytest.approx(images.numpy(), abs=1e-6)
    amplitudes = low_frequencies(spectrum(images + 1), 0.0).abs()
    moved = interpolate(images, amplitudes, torch.full((3,), 0.5), 0.0)
    assert moved.numpy() == pytest.approx(images.numpy() + 0.5, abs=1e-5)


def test_a_step_ahead_has_the_gradient_of_its_end() -> None:
    # w = b = 0 at (x, y) = (1, 2): g = (-2, -2), theta' = (0.2, 0.2) at lr 0.1. At (3, 2): r = 0.8 - 2 = -1.2.
    net = toy.Line()
    loss = toy.half_squares(net(torch.ones(1, 1)), torch.full((1, 1), 2))
    ahead = step_ahead(net, loss, 0.1)
    assert (ahead["weight"].item(), ahead["bias"].item()) == pytest.approx((0.2, 0.2))
    outer = toy.half_squares(torch.func.functional_call(net, ahead, (torch.full((1, 1), 3.0),)), torch.full((1, 1), 2))
    (loss + outer).backward()
    assert (net.weight.grad.item(), net.bias.grad.item()) == pytest.approx((-2 - 3.6, -2 - 1.2))


def test_a_step_by_hand() -> None:
    # a: x = 1 has r = -2, gradient (-2, -2) and theta' = (1, 1). t = 1 + 2 lambda has r = t - 1, gradient (r t, r).
    # So lambda follows from b = 0.1 (2 - r), and it determines w.
    task = image_task({"a": [(1.0, 2)], "b": [(3.0, 2)]})
    algorithm, fleet = ELCFS(meta_lr=0.5, **SGD), LocalFleet(task, rounds=1)
    broadcast = Broadcast(algorithm.init(task), fleet.exchange(algorithm.publish))
    reply = fleet.map(algorithm.client, broadcast)["a"]
    w, b = toy.line(reply.payload)
    t = 1 + (2 - b / 0.1)
    assert 1.01 < t < 2.99
    assert w == pytest.approx(0.1 * (2 - (t - 1) * t), rel=1e-4)
    assert reply.metrics["loss"] == pytest.approx(2 + (t - 1) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize("fields", [SGD, {"lr": 0.01}])
def test_a_single_site_has_the_bits_of_fedavg(fields: dict[str, Any]) -> None:
    ours, _ = run(ELCFS(epochs=3, **fields), task=image_task(), cohort=1)
    assert ours.state == run(FedAvg(epochs=3, **fields), task=image_task(), cohort=1)[0].state
    assert not any(ours.traffic.between.values())


def test_the_low_frequencies_are_sent_between_sites() -> None:
    # (0.25 * 4 = 1): windows of 3 by 3 numbers. Site a sends one of its two images.
    traffic = run(ELCFS(spectra=1, window=0.25, **SGD))[0].traffic
    assert traffic.between == {"a": 36, "b": 36}
    assert traffic.up == {"a": 8, "b": 8}
    traffic = run(ELCFS(spectra=8, window=0.25, **SGD))[0].traffic
    assert traffic.between == {"a": 36, "b": 72}


def test_tables_are_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"algorithm=elcfs .* shape \(1,\); expected \(C, \*space\); use a task"):
        ELCFS().init(toy.two_sites())
