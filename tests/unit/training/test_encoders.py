"""The encoder of each supported network class; other classes are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks import nets

from raysim import ConfigError, weights
from raysim.training.encoders import PooledEncoder, encoder, encoder_weights, feature_channels

BOTH: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
FAMILIES: dict[str, tuple[Any, int, str, str]] = {  # network, deepest channels, layer of the encoder, later layer
    "BasicUNet": (lambda: nets.BasicUNet(**BOTH, features=(2, 4, 4, 8, 16, 2)), 16, "down_4.", "upcat_4."),
    "UNet": (
        lambda: nets.UNet(**BOTH, channels=(2, 4, 8), strides=(2, 2), num_res_units=1, norm="batch"),
        8,
        "model.1.submodule.1.submodule.",
        "model.1.submodule.2.",
    ),
    "DynUNet": (
        lambda: nets.DynUNet(
            **BOTH, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(2, 4, 8)
        ),
        8,
        "bottleneck.",
        "upsamples.",
    ),
    "SegResNet": (
        lambda: nets.SegResNet(**BOTH, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
        16,
        "down_",
        "up_",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoder_has_the_down_blocks_and_the_bottom_block(name: str) -> None:
    make, channels, inside, outside = FAMILIES[name]
    net = make()
    names = encoder_weights(net)
    assert any(n.startswith(inside) for n in names)
    assert not any(n.startswith(outside) for n in names)
    assert feature_channels(encoder(net), (1, 32, 32)) == channels
    assert net.training  # unchanged


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoder_uses_the_output_of_the_encoder(name: str) -> None:
    # The network computes the deepest features of the encoder, and shares the encoder's weights.
    net = FAMILIES[name][0]().eval()
    images, body = torch.randn(2, 1, 32, 32), encoder(net)
    seen: list[torch.Tensor] = []
    body[-1].register_forward_hook(lambda layer, given, found: seen.append(found))
    net(images)
    assert torch.equal(body(images), seen[0])
    before = weights(net)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(1)
    after = weights(net)
    changed = {n for n in after if (after[n] != before[n]).any()}
    assert changed == {n for n in encoder_weights(net) if after.schema.index[n].parameter}


def test_pooled_is_the_mean_over_space() -> None:
    body = torch.nn.Identity()
    images = torch.arange(8.0).reshape(1, 2, 2, 2)  # channels 0..3 and 4..7
    assert PooledEncoder(body, torch.nn.Identity())(images).tolist() == [[1.5, 5.5]]


def test_another_network_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="encoder of AttentionUnet; use one of BasicUNet, UNet, DynUNet, SegResNet"):
        encoder(nets.AttentionUnet(**BOTH, channels=(2, 4), strides=(2,)))
