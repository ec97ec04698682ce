"""The head of a network, by name or by default its last layer."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from raysim import ConfigError
from raysim.training.heads import head_layer, last_layer, within


def test_the_head_is_by_default_the_last_layer() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    assert head_layer(net, (1,)) == "1"
    assert head_layer(net, (1,), "0") == "0"
    with pytest.raises(ConfigError, match=r"algorithm.head=2: expected .* layers of the network: 0, 1$"):
        head_layer(net, (1,), "2")
    with pytest.raises(ConfigError, match="matches some layers, but not all"):
        head_layer(nn.Sequential(nn.Linear(1, 1)), (1,))


def test_a_name_ends_at_a_dot() -> None:
    assert within("fc.weight", "fc")
    assert within("fc", "fc")
    assert within("model.2.conv.bias", "model.2")
    assert not within("fc2.weight", "fc")


class DeeplySupervised(nn.Module):
    """Its last layer affects only an output for training. The first output has the full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out, self.side = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return [self.out(h), self.side(h)] if self.training else [self.out(h)]


def test_the_last_layer_is_the_last_that_affects_the_output() -> None:
    assert last_layer(DeeplySupervised(), (1, 4, 4)) == "out"
    net = DeeplySupervised()
    net.out.requires_grad_(False)
    assert last_layer(net, (1, 4, 4)) == "body"
    with pytest.raises(ConfigError, match="no trained layer affects the network's output"):
        last_layer(net.requires_grad_(False), (1, 4, 4))
