"""Selectors: classifiers that choose a model for each image, and their inputs at a low resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from raysim.core.arrays import shared_tensor
from raysim.core.contracts import Split, Task
from raysim.core.errors import ConfigError
from raysim.core.seeding import preserve_rng

SelectorKind = Literal["small", "vgg11"]
SMALL = (16, 32, 64, 128)  # channels of convolutions
VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels of convolutions, 0 for pooling
VGG11_HIDDEN = 4096
SLOPE = 0.1  # of the small selector's LeakyReLU
POOLING_BATCH = 64  # images


@lru_cache(maxsize=4)
def selector_network(task: Task, kind: SelectorKind, size: int | None, classes: int) -> nn.Module:
    """A selector, (B, C, *space) -> logits (B, classes), whose first layer averages images as in `pooled_inputs`.

    It is cached, because creating it is slow. `selector_network.__wrapped__` returns one with new random weights.
    """
    shape = pooled_shape(task.shape, size)
    with preserve_rng():
        net = (vgg11 if kind == "vgg11" else small_selector)(shape, classes)
    return net if shape == task.shape else nn.Sequential(_pool(len(shape) - 1)(shape[1:]), net)


def pooled_shape(shape: Sequence[int], size: int | None) -> tuple[int, ...]:
    """The shape (C, *space) of an image with at most `size` pixels per side; that of a vector, (F,), is unchanged."""
    return tuple(shape) if size is None else (shape[0], *(min(side, size) for side in shape[1:]))


_pooled: WeakKeyDictionary[Split, dict[tuple[int, ...], Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def pooled_inputs(split: Split, size: int | None, device: torch.device) -> Tensor:
    """All inputs of a split, (N, C, *space), each averaged to at most `size` pixels per side; None: unchanged.

    Averaged inputs are on `device`, and are kept as long as the split. They must not be written to.
    """
    inputs, shape = shared_tensor(split.inputs), pooled_shape(split.inputs.shape[1:], size)
    if shape == split.inputs.shape[1:] or not len(split):
        return inputs
    cached = _pooled.setdefault(split, {})
    if shape not in cached:
        pool = _pool(len(shape) - 1)(shape[1:])
        cached[shape] = torch.cat([pool(batch.to(device)) for batch in inputs.split(POOLING_BATCH)])
    return cached[shape]


def small_selector(shape: Sequence[int], classes: int) -> nn.Module:
    """Four convolutions of stride 2, mean over space, and a linear layer; for vectors (F,), one hidden layer.

    There is no normalisation, because the brightness and the contrast of an image indicate its site.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], SMALL[-1]), nn.ReLU(), nn.Linear(SMALL[-1], classes))
    dims, channels, layers = len(shape) - 1, shape[0], list[nn.Module]()
    for width in SMALL:
        convolution = _conv(dims)(channels, width, 3, stride=2, padding=1)
        # With torch's default, differences between images nearly vanish after four layers without normalisation.
        nn.init.kaiming_normal_(convolution.weight, SLOPE)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.LeakyReLU(SLOPE)]
        channels = width
    return nn.Sequential(*layers, _pool(dims)(1), nn.Flatten(), nn.Linear(channels, classes))


def vgg11(shape: Sequence[int], classes: int) -> nn.Module:
    """VGG-11 without normalisation (Simonyan, Zisserman, ICLR 2015), with as many dimensions as the examples.

    Pooling stops when a side of the image has size 1. Raises ConfigError for vectors.
    """
    dims = len(shape) - 1
    if dims < 1:
        raise ConfigError(f"vgg11 needs images, and examples have shape {tuple(shape)}; set algorithm.selector=small")
    layers, channels, size = list[nn.Module](), shape[0], min(shape[1:])
    for width in VGG11:
        if width:
            layers += [_conv(dims)(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        elif size > 1:
            layers.append((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2))
            size //= 2
    head = [nn.Linear(channels * 7**dims, VGG11_HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
    head += [nn.Linear(VGG11_HIDDEN, VGG11_HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, _pool(dims)(7), nn.Flatten(), *head, nn.Linear(VGG11_HIDDEN, classes))


def _conv(dims: int) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]


def _pool(dims: int) -> Any:
    return (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
