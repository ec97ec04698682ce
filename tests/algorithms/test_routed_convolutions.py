"""Routed convolutions: one-hot mixing weights select an expert, equal weights average the kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import Tensor, nn

from raysim.training.routed_convolutions import RoutedConvolution, Router, route_convolutions, routers
from tests.support.slow import slow_except


class Fixed(nn.Module):
    """Mixing weights that do not depend on the image."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, means: Tensor) -> Tensor:
        return self.weights.expand(len(means), -1)


def network(kind: str, dims: int) -> nn.Module:
    if kind == "unet-batch":
        return UNet(dims, 2, 3, (4, 8), (2,), num_res_units=1, norm="batch")
    if kind == "unet-instance":
        return UNet(dims, 2, 3, (4, 8), (2,), norm="instance")
    if kind == "segresnet":
        return SegResNet(dims, 8, 2, 3, blocks_down=(1, 1), blocks_up=(1,), norm=("batch"))
    if kind == "dynunet":
        return DynUNet(dims, 2, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8), norm_name="instance")
    return BasicUNet(dims, 2, 3, (4, 4, 8, 8, 8, 4), upsample="deconv")


KINDS = ("unet-batch", "unet-instance", "segresnet", "dynunet", "basicunet")
every_network = pytest.mark.parametrize(
    ("kind", "dims"), slow_except(product(KINDS, (2, 3)), [*product(KINDS, (2,)), ("unet-batch", 3)])
)


def experts(kind: str, dims: int, count: int = 3) -> list[nn.Module]:
    """Networks that differ only in their kernels."""
    torch.manual_seed(0)
    first = network(kind, dims).eval()
    nets = [copy.deepcopy(first) for _ in range(count)]
    for net in nets:
        for layer in net.modules():
            if hasattr(layer, "kernel_size") and isinstance(getattr(layer, "weight", None), nn.Parameter):
                nn.init.normal_(layer.weight, std=0.2)  # type: ignore[arg-type]  # a parameter, as just seen
    return nets


def images(dims: int, count: int = 2) -> Tensor:
    return torch.randn(count, 2, *(32,) * dims, generator=torch.Generator().manual_seed(1))


def fixed(net: nn.Module, weights: Sequence[float]) -> nn.Module:
    for layer in net.modules():
        if isinstance(layer, RoutedConvolution):
            layer.router = Fixed(weights)  # type: ignore[assignment]  # replaces the trained router
    return net.eval()


@every_network
@torch.no_grad()
def test_one_hot_weights_select_that_expert(kind: str, dims: int) -> None:
    nets, x = experts(kind, dims), images(dims)
    expected = [net(x) for net in nets]
    routed = route_convolutions(copy.deepcopy(nets), "sigmoid", 0.0)
    for place, answer in enumerate(expected):
        one_hot = [float(place == e) for e in range(3)]
        assert torch.allclose(fixed(copy.deepcopy(routed), one_hot)(x), answer, atol=1e-5)


@every_network
@torch.no_grad()
def test_equal_weights_average_the_kernels(kind: str, dims: int) -> None:
    nets, x = experts(kind, dims), images(dims)
    mean = copy.deepcopy(nets[0])
    for name, parameter in mean.named_parameters():
        parameter.copy_(torch.stack([net.get_parameter(name) for net in nets]).mean(0))
    assert torch.allclose(fixed(route_convolutions(nets, "sigmoid", 0.0), [1 / 3] * 3)(x), mean(x), atol=1e-4)


@every_network
@torch.no_grad()
def test_a_batch_equals_single_images(kind: str, dims: int) -> None:
    net = route_convolutions(experts(kind, dims), "sigmoid", 0.2).eval()
    x = images(dims, 3)
    assert torch.allclose(net(x), torch.cat([net(one[None]) for one in x]), atol=1e-4)


@torch.no_grad()
def test_with_equal_experts_only_the_sum_of_the_weights_matters() -> None:
    nets = [copy.deepcopy(net) for net in experts("unet-instance", 2, 1) * 3]
    expected, x = nets[0](images(2)), images(2)
    assert torch.allclose(route_convolutions(copy.deepcopy(nets), "softmax", 0.0).eval()(x), expected, atol=1e-5)
    one, other = (
        fixed(route_convolutions(copy.deepcopy(nets), "sigmoid", 0.0), w)(x) for w in ([0.7, 0.2, 0.1], [0.1, 0.1, 0.8])
    )
    assert torch.allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_the_order_of_experts_is_irrelevant() -> None:
    nets, x = experts("basicunet", 2), images(2)
    one = route_convolutions(copy.deepcopy(nets), "sigmoid", 0.0).eval()
    other = route_convolutions([copy.deepcopy(nets[e]) for e in (1, 0, 2)], "sigmoid", 0.0).eval()
    for here, there in zip(routers(one), routers(other), strict=True):
        there.load_state_dict(here.state_dict())
        there.second.weight.copy_(here.second.weight[[1, 0, 2]])
        there.second.bias.copy_(here.second.bias[[1, 0, 2]])
    assert torch.allclose(one(x), other(x), atol=1e-5)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_routers_start_near_the_mean_of_the_experts(gate: str) -> None:
    router = Router(4, 5, gate, 0.0)  # type: ignore[arg-type]  # one of the two
    with torch.no_grad():
        nn.init.zeros_(router.second.weight)
        assert router(torch.randn(2, 4)).numpy() == pytest.approx(0.2)


def test_unusual_convolutions_are_routed() -> None:
    for layer in (
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, (3, 5), padding=(1, 2), padding_mode="replicate"),
        nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2), padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="valid", padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)),
    ):
        x = torch.randn(3, 4, *(8,) * (layer.weight.ndim - 2))
        pair = [nn.Sequential(copy.deepcopy(layer)) for _ in range(2)]
        net = fixed(route_convolutions(pair, "sigmoid", 0.0), [0.0, 1.0])
        with torch.no_grad():
            assert torch.allclose(net(x), layer(x), atol=1e-5)


def test_only_routers_train_and_a_network_without_convolutions_is_refused() -> None:
    net = route_convolutions(experts("unet-batch", 2), "sigmoid", 0.0)
    assert {name.split(".router.")[-1] for name, p in net.named_parameters() if p.requires_grad} == {
        *("first.weight", "first.bias", "second.weight", "second.bias")
    }
    with pytest.raises(ValueError, match="no convolution to route"):
        route_convolutions([nn.Linear(2, 2)], "sigmoid", 0.0)
