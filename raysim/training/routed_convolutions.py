"""Convolutions that mix the kernels of several networks, with weights that a router computes for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | TransposedConvolution
Gate = Literal["sigmoid", "softmax"]


class Router(nn.Module):
    """Mixing weights (B, E) from the means over space (B, C), by two linear layers without an activation between them.

    The initial weights are near 1/E, so that the first mixture is about the mean of the experts.
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
    """y_b = conv(x_b; sum_e r_be W_e, sum_e r_be b_e), as one grouped convolution per batch. The kernels are frozen."""

    def __init__(self, experts: Sequence[Convolution], gate: Gate, dropout: float) -> None:
        super().__init__()
        like = experts[-1]
        self.transposed, self.dims = isinstance(like, TransposedConvolution), len(like.kernel_size)
        self.options: tuple[Any, ...] = (like.stride, like.padding, like.dilation, like.groups)
        self.output_padding = like.output_padding
        self.pad_input = None if like.padding_mode == "zeros" else (explicit_padding(like), like.padding_mode)
        self.router = Router(like.in_channels, len(experts), gate, dropout).to(like.weight)
        self.register_buffer("kernels", torch.stack([expert.weight.detach() for expert in experts]))
        biases = [expert.bias.detach() for expert in experts if expert.bias is not None]
        self.register_buffer("biases", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.options
        weights = self.router(x.flatten(2).mean(2))
        kernel = torch.einsum("be,e...->b...", weights, self.kernels).flatten(0, 1)
        bias = None if self.biases is None else (weights @ self.biases).flatten()
        if self.pad_input is not None:
            x, padding = F.pad(x, *self.pad_input), 0
        count, grouped = len(x), x.reshape(1, -1, *x.shape[2:])
        if self.transposed:
            convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dims - 1]
            y = convolve(grouped, kernel, bias, stride, padding, self.output_padding, count * groups, dilation)
        else:
            convolve = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
            y = convolve(grouped, kernel, bias, stride, padding, dilation, count * groups)
        return torch.as_tensor(y).reshape(count, -1, *y.shape[2:])


def explicit_padding(layer: Convolution) -> list[int]:
    """The padding of `layer` as for `F.pad`: before and after each axis, starting with the last axis."""
    spans = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        pairs = [(span // 2, span - span // 2) if layer.padding == "same" else (0, 0) for span in spans]
    else:
        pairs = [(amount, amount) for amount in layer.padding]
    return [amount for pair in reversed(pairs) for amount in pair]


def route_convolutions(nets: Sequence[nn.Module], gate: Gate, dropout: float) -> nn.Module:
    """The last of `nets`; each of its convolutions is replaced by a mix of the convolutions of all `nets`.

    Everything is frozen except the routers. Raises ValueError for a network without a convolution.
    """
    convolutions = [{name: m for name, m in net.named_modules() if isinstance(m, Convolution)} for net in nets]
    net = nets[-1].requires_grad_(False)
    if not has_convolution(net):
        raise ValueError("the network has no convolution to route")
    for name in convolutions[-1]:
        parent, _, last = name.rpartition(".")
        layer = RoutedConvolution([layers[name] for layers in convolutions], gate, dropout)
        setattr(net.get_submodule(parent), last, layer)
    return net


def has_convolution(net: nn.Module) -> bool:
    return any(isinstance(module, Convolution) for module in net.modules())


def routers(net: nn.Module) -> list[Router]:
    """The routers of a network returned by `route_convolutions`."""
    return [module for module in net.modules() if isinstance(module, Router)]
