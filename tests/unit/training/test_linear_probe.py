"""The linear probe: features that separate the levels, and features that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysim import Data, Split
from raysim.training.linear_probe import level_accuracy

CPU = torch.device("cpu")


def images(levels: list[int]) -> Split:
    """Images (N, 2, 2, 2): the mean of channel 0 is 10 times the level, and channel 1 is noise."""
    noise = np.random.default_rng(len(levels)).normal(size=(len(levels), 2, 2, 2))
    noise[:, 0] += np.array(levels)[:, None, None] * 10 - noise[:, 0].mean((1, 2), keepdims=True)
    each = np.arange(len(levels))
    inputs = noise.astype(np.float32)
    return Split(inputs=inputs, labels=None, cases=each, spacing=np.ones((len(levels), 2)), levels=np.array(levels))


def data(train: list[int], unlabelled: list[int], val: list[int]) -> Data:
    return Data(train=images(train), val=images(val), test=images([]), unlabelled=images(unlabelled))


class Channel(nn.Module):
    """One channel of the image as features (B, 1, 2, 2)."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channel : self.channel + 1]


def test_separable_features_have_full_accuracy() -> None:
    # With one feature a linear probe separates two levels.
    assert level_accuracy(Channel(0), data([1, 2] * 20, [2] * 5, [1, 2, 2]), 4, CPU) == 100


def test_only_levels_of_the_pool_can_be_predicted() -> None:
    assert level_accuracy(Channel(0), data([1, 2] * 20, [], [1, 2, 3, 3]), 4, CPU) == 50


def test_features_without_the_level_are_at_chance() -> None:
    found = level_accuracy(Channel(1), data([1, 2] * 300, [], [1, 2] * 300), 4, CPU)
    assert found == pytest.approx(50, abs=8)


def test_without_validation_images_there_is_no_accuracy() -> None:
    assert level_accuracy(Channel(0), data([1, 2], [], []), 4, CPU) is None
    assert level_accuracy(Channel(0), data([], [], [1, 2]), 4, CPU) is None
