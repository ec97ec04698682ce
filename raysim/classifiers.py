"""Small classifiers for examples of any shape, built to a wanted number of parameters, and VGG-11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from raysim.errors import ConfigError

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels of convolutions, 0 for pooling
WIDE = 4096
SLOPE = 0.1  # of the small one, where its units are off


def small(shape: Sequence[int], classes: int, parameters: int) -> nn.Module:
    """About so many `parameters`: four convolutions of stride 2 and a linear layer on the mean over space.

    `shape` is (C, *space), or (F,) for vectors, which get one hidden layer. Nothing is normalised: the brightness and
    the contrast of an image tell where it comes from.
    """
    if len(shape) == 1:
        width = max(4, round(parameters / (shape[0] + classes + 1)))
        return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))
    width = 1
    while counted(_convolutions(shape, classes, width + 1)) <= parameters:
        width += 1
    return _convolutions(shape, classes, width)


def vgg11(shape: Sequence[int], classes: int) -> nn.Module:
    """VGG-11 without normalisation (Simonyan, Zisserman, ICLR 2015), in as many dimensions as the examples have.

    Space is halved as long as there is any. Raises ConfigError for vectors.
    """
    dims = len(shape) - 1
    if dims < 1:
        raise ConfigError(f"VGG-11 looks at images, and examples here are of the shape {tuple(shape)}: take 'small'")
    layers, channels, size = list[nn.Module](), shape[0], min(shape[1:])
    for wide in VGG11:
        if wide:
            layers += [_conv(dims)(channels, wide, 3, padding=1), nn.ReLU(inplace=True)]
            channels = wide
        elif size > 1:
            layers.append((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2))
            size //= 2
    head = [nn.Linear(channels * 7**dims, WIDE), nn.ReLU(inplace=True), nn.Dropout()]
    head += [nn.Linear(WIDE, WIDE), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(WIDE, classes)]
    return nn.Sequential(*layers, _pool(dims)(7), nn.Flatten(), *head)


def counted(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def _convolutions(shape: Sequence[int], classes: int, width: int) -> nn.Module:
    dims, channels, layers = len(shape) - 1, shape[0], list[nn.Module]()
    for wide in (width, 2 * width, 4 * width, 8 * width):
        convolution = _conv(dims)(channels, wide, 3, stride=2, padding=1)
        # As torch makes it, what differs between images has all but gone after four layers without normalisation.
        nn.init.kaiming_normal_(convolution.weight, SLOPE)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.LeakyReLU(SLOPE)]
        channels = wide
    return nn.Sequential(*layers, _pool(dims)(1), nn.Flatten(), nn.Linear(channels, classes))


def _conv(dims: int) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]


def _pool(dims: int) -> Any:
    return (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
