"""Copies of a network: as deep as those of `copy.deepcopy`, for any content of the network."""

from __future__ import annotations

import copy
import gc
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from raysim.core.model import weights
from raysim.core.module_copy import copy_module


class Net(nn.Module):
    """A network with parts that a copy may share by mistake: lambda, lists, tied weight, a buffer that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.seen: list[Tensor] = []
        self.aside = [self.first]  # a module that nn.Module does not register
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("front", self.whole[:3])
        self.activation = lambda x: x.relu()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.norm(self.second(self.activation(self.aside[0](x))))


def test_a_copy_computes_the_same_and_shares_no_tensor() -> None:
    net = Net()
    one, x = copy_module(net), torch.randn(4, 3)
    assert weights(one) == weights(net)
    assert torch.equal(one(x), copy.deepcopy(net)(x))
    mine = {t.data_ptr() for t in net.state_dict().values()}
    assert not mine & {t.data_ptr() for t in one.state_dict().values()}


def test_a_copy_shares_nothing_with_other_copies_or_the_original() -> None:
    net = Net()
    before = weights(net)
    one, other = copy_module(net), copy_module(net)
    with torch.no_grad():
        one.first.weight.fill_(7)
    one(torch.ones(2, 3))
    assert [len(each.seen) for each in (one, other, net)] == [1, 0, 0]
    assert weights(other) == before == weights(net) == weights(copy_module(net))


def test_shared_objects_of_the_original_are_shared_in_the_copy() -> None:
    one = copy_module(Net())
    assert one.second.weight is one.first.weight
    assert one.aside[0] is one.first
    one.whole[0] = 5
    assert one.front[0] == 5


def test_training_mode_frozen_parameters_and_dtypes_are_kept() -> None:
    net = Net().double().eval()
    net.norm.train()
    net.first.bias.requires_grad_(False)
    one = copy_module(net)
    assert isinstance(one.first.weight, nn.Parameter)
    assert one.first.weight.dtype is torch.float64
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in net.parameters()]
    assert [layer.training for layer in (one, one.first, one.norm)] == [False, False, True]


@pytest.mark.parametrize(
    "net", [weight_norm(nn.Linear(2, 2)), nn.LSTM(2, 2), nn.Sequential(weight_norm(nn.Linear(2, 2)))]
)
def test_networks_with_custom_copy_methods(net: nn.Module) -> None:
    assert weights(copy_module(net)) == weights(net)
    x = torch.ones(3, 2)
    assert repr(copy_module(net)(x)) == repr(net(x))


def test_the_original_is_not_kept_in_memory() -> None:
    net = Net()
    reference = ref(net)
    copy_module(net)
    del net
    gc.collect()
    assert reference() is None
