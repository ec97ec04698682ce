"""Selectors and their inputs at a low resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raysim import ConfigError, Split
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training import selector_network
from raysim.training.selector_networks import pooled_inputs, pooled_shape, vgg11

CPU = torch.device("cpu")


def images(*shape: int) -> Split:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Split(inputs=values, labels=None, cases=np.arange(shape[0]), spacing=np.ones((shape[0], len(shape) - 2)))


def test_images_are_averaged_and_kept_with_their_split() -> None:
    split = images(2, 1, 4, 2)
    pooled = pooled_inputs(split, 2, CPU)
    assert pooled[0, 0].tolist() == [[1, 2], [5, 6]]  # means over pairs of rows; columns are not changed
    assert pooled_inputs(split, 2, CPU) is pooled
    assert pooled_inputs(split, None, CPU).numpy() is not None
    assert pooled_inputs(split, 4, CPU).numpy().tolist() == split.inputs.tolist()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((3, 64, 40), 32, (3, 32, 32)), ((1, 64, 16), 32, (1, 32, 16)), ((7,), 2, (7,)), ((1, 64, 64), None, (1, 64, 64))],
)
def test_shapes_at_the_selectors_resolution(
    shape: tuple[int, ...], size: int | None, expected: tuple[int, ...]
) -> None:
    assert pooled_shape(shape, size) == expected


def test_a_selector_pools_its_inputs_itself() -> None:
    task = Synthetic(data=SyntheticData(size=(64, 40))).build()
    net = selector_network(task, "small", 32, 5)
    split = images(3, 1, 64, 40)
    with torch.no_grad():
        small, full = net(pooled_inputs(split, 32, CPU)), net(torch.from_numpy(split.inputs.copy()))
    assert small.shape == (3, 5)
    assert torch.equal(small, full)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 16, 16), (6,)])
def test_the_small_selector_fits_images_volumes_and_vectors(shape: tuple[int, ...]) -> None:
    task = replace(Synthetic().build(), shape=shape)
    assert selector_network(task, "small", 32, 3)(torch.randn(2, *shape)).shape == (2, 3)


def test_vgg11_has_the_size_of_the_paper_and_refuses_vectors() -> None:
    with torch.device("meta"):
        assert 1e8 < sum(p.numel() for p in vgg11((1, 16, 16), 3).parameters()) < 1.4e8
    with pytest.raises(ConfigError, match=r"vgg11 needs images, and examples have shape \(6,\)"):
        vgg11((6,), 3)
