"""A network whose convolutions mix, for each image anew, the kernels of several trained copies of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Gate = Literal["sigmoid", "softmax"]


class Router(nn.Module):
    """Mixing weights (B, E) from the means over space (B, C), by two linear layers without anything between them.

    They start near 1/E each, so that the first mixture is about the mean of the experts.
    """

    def __init__(self, channels: int, experts: int, gate: Gate, dropout: float) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(channels, 2 * channels), nn.Dropout(dropout)
        self.second, self.gate = nn.Linear(2 * channels, experts), gate
        nn.init.constant_(self.second.bias, -math.log(experts - 1) if gate == "sigmoid" and experts > 1 else 0.0)

    def forward(self, means: Tensor) -> Tensor:
        logits: Tensor = self.second(self.drop(self.first(means)))
        return logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(1)


class RoutedConvolution(nn.Module):
    """y_b = conv(x_b; sum_e r_be W_e, sum_e r_be b_e): one grouped convolution for a batch; the kernels are frozen."""

    def __init__(self, experts: Sequence[_ConvNd], gate: Gate, dropout: float) -> None:
        super().__init__()
        like = experts[-1]
        self.like: tuple[Any, ...] = (
            like.stride,
            like.padding,
            like.dilation,
            like.groups,
            getattr(like, "output_padding", 0),
        )
        self.transposed, self.dims = isinstance(like, _ConvTransposeNd), len(like.kernel_size)
        self.around = (
            None if like.padding_mode == "zeros" else (like._reversed_padding_repeated_twice, like.padding_mode)
        )
        self.router = Router(like.in_channels, len(experts), gate, dropout).to(like.weight)
        self.register_buffer("kernels", torch.stack([expert.weight.detach() for expert in experts]))
        biases = [expert.bias.detach() for expert in experts if expert.bias is not None]
        self.register_buffer("biases", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups, output_padding = self.like
        weights = self.router(x.flatten(2).mean(2))
        kernel = torch.einsum("be,e...->b...", weights, self.kernels).flatten(0, 1)
        bias = None if self.biases is None else (weights @ self.biases).flatten()
        if self.around is not None:
            x, padding = F.pad(x, *self.around), 0
        count, together = len(x), x.reshape(1, -1, *x.shape[2:])
        if self.transposed:
            turn: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dims - 1]
            y = turn(together, kernel, bias, stride, padding, output_padding, count * groups, dilation)
        else:
            turn = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
            y = turn(together, kernel, bias, stride, padding, dilation, count * groups)
        return torch.as_tensor(y).reshape(count, -1, *y.shape[2:])


def route(nets: Sequence[nn.Module], gate: Gate, dropout: float) -> nn.Module:
    """The last of `nets`, changed: each convolution, transposed or not, now mixes those of all. The rest stays its own.

    Everything is frozen but the routers. Raises ValueError for a network without a convolution.
    """
    found = [{name: m for name, m in net.named_modules() if isinstance(m, _ConvNd)} for net in nets]
    net = nets[-1].requires_grad_(False)
    if not can_be_routed(net):
        raise ValueError("there is no convolution to route in this network")
    for name in found[-1]:
        parent, _, last = name.rpartition(".")
        layer = RoutedConvolution([layers[name] for layers in found], gate, dropout)
        setattr(net.get_submodule(parent), last, layer)
    return net


def can_be_routed(net: nn.Module) -> bool:
    """Whether there is a convolution in `net`."""
    return any(isinstance(module, _ConvNd) for module in net.modules())


def routers(net: nn.Module) -> list[Router]:
    """The routers of a network that `route` made."""
    return [module for module in net.modules() if isinstance(module, Router)]
