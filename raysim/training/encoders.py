"""Encoders of segmentation networks, for each supported class of MONAI networks; heads; averages of encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from raysim.core.errors import ConfigError
from raysim.core.model import Model, weights


def _basic_unet(net: Any) -> list[nn.Module]:
    return [net.conv_0, net.down_1, net.down_2, net.down_3, net.down_4]


def _unet(net: Any) -> list[nn.Module]:
    """The down blocks and the bottom block. Each level is (down, skip connection around the next level, up)."""
    stages, block = list[nn.Module](), net.model
    while isinstance(block, nn.Sequential) and len(block) == 3 and isinstance(block[1], SkipConnection):
        stages.append(block[0])
        block = block[1].submodule
    return [*stages, block]


def _dynunet(net: Any) -> list[nn.Module]:
    return [net.input_block, *net.downsamples, net.bottleneck]


def _segresnet(net: Any) -> list[nn.Module]:
    dropout = [] if net.dropout_prob is None else [net.dropout]
    return [net.convInit, *dropout, *net.down_layers]


FAMILIES: Mapping[type[nn.Module], Callable[[Any], list[nn.Module]]] = {
    BasicUNet: _basic_unet,
    UNet: _unet,
    DynUNet: _dynunet,
    SegResNet: _segresnet,
}


def encoder(net: nn.Module) -> nn.Sequential:
    """The encoder of `net`, made of the layers of `net`: images (B, C, *space) -> deepest features (B, F, *coarse).

    Raises ConfigError for a network whose class is not in `FAMILIES`.
    """
    stages = FAMILIES.get(type(net))
    if stages is None:
        known = ", ".join(family.__name__ for family in FAMILIES)
        raise ConfigError(f"pre-training does not know the encoder of {type(net).__name__}; use one of {known}")
    return nn.Sequential(*stages(net))


class PooledEncoder(nn.Module):
    """Encoder, mean over space, head: images (B, C, *space) -> (B, D)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.encoder(images).flatten(2).mean(2))
        return outputs


def projector(channels: int, features: int) -> nn.Module:
    """A projection head with one hidden layer: (B, channels) -> (B, features)."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, features))


def mlp(inputs: int, features: int) -> nn.Module:
    """A head with one hidden layer and batch normalisation: (B, inputs) -> (B, features)."""
    hidden = 2 * features
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, features))


@torch.no_grad()
def feature_channels(encoder: nn.Module, shape: Sequence[int]) -> int:
    """The number of channels of the deepest features for an example of shape `shape`."""
    training = encoder.training
    device = next(encoder.parameters()).device
    features: Tensor = encoder.eval()(torch.zeros(1, *shape, device=device))
    encoder.train(training)
    return features.shape[1]


def encoder_weights(net: nn.Module) -> Model:
    """The weights of the encoder of `net`, including buffers, under all their names in `net`."""
    in_encoder = {id(tensor) for tensor in encoder(net).state_dict(keep_vars=True).values()}
    names = [name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) in in_encoder]
    return weights(net).only(names)


@torch.no_grad()
def ema_update(target: nn.Module, net: nn.Module, momentum: float) -> None:
    """Update `target` in place: xi <- momentum xi + (1 - momentum) theta, with xi of `target` and theta of `net`."""
    for xi, theta in zip(target.parameters(), net.parameters(), strict=True):
        xi.lerp_(theta, 1 - momentum)
