"""Adaptation of a network to images without labels, by batch statistics, by Tent or by SAR.

Batch statistics: Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek, "Evaluating Prediction-Time Batch
Normalization for Robustness under Covariate Shift", 2020, https://arxiv.org/abs/2006.10963, and Schneider, Rusak, Eck,
Bringmann, Brendel, Bethge, "Improving Robustness against Common Corruptions by Covariate Shift Adaptation", NeurIPS
2020, https://arxiv.org/abs/2006.16971. Tent: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time
Adaptation by Entropy Minimization", ICLR 2021, https://arxiv.org/abs/2006.10726. SAR: Niu, Wu, Zhang, Wen, Chen, Zhao,
Tan, "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023, https://arxiv.org/abs/2302.12400.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from raysim.core.contracts import Array
from raysim.core.errors import RunError
from raysim.core.model import BatchNorm
from raysim.core.seeding import numpy_generator

BatchOrInstanceNorm = BatchNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
NormLayer = BatchOrInstanceNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm
LR = 1e-3
PASSES = 1
SAR_RELIABLE = 0.4  # a prediction is reliable if its entropy is below this fraction of log(classes)
SAR_RADIUS = 0.05  # rho: distance from the parameters at which the gradient is computed


@dataclass(frozen=True, kw_only=True)
class OutsideAdaptation:
    """How the global model is adapted to an outside site.

    Raises ValueError for `lr` or `passes` without Tent or SAR.
    """

    name: Annotated[
        Literal["global", "batch_stats", "tent", "sar"],
        "model at outside sites. global: the unchanged global model; batch_stats: normalised by the statistics of each "
        "batch; tent: adapted by Tent; sar: adapted by SAR. Short form: algorithm.outside=tent",
    ] = "global"
    lr: Annotated[float | None, Gt(0), "learning rate of Tent's Adam or of SAR's sgd; default 0.001"] = None
    passes: Annotated[
        int | None, Gt(0), "passes of Tent or SAR over an outside site's test images, without labels; default 1"
    ] = None

    def __post_init__(self) -> None:
        if self.name not in ADAPTATIONS and not (self.lr is None and self.passes is None):
            raise ValueError(
                "name=tent or name=sar with lr or passes, which only Tent and SAR have; set name=tent or name=sar, or "
                "remove lr and passes"
            )


def norm_layers(net: nn.Module) -> dict[str, NormLayer]:
    """The normalisation layers of `net` by name: batch, instance, group, layer and RMS norm."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, NormLayer)}


def use_batch_statistics(net: nn.Module) -> None:
    """Make layers with running statistics normalise each batch by the mean and variance of that batch instead.

    The network then raises RunError for a batch without statistics: one example with one value per channel.
    """
    for layer in norm_layers(net).values():
        if isinstance(layer, BatchOrInstanceNorm) and layer.track_running_stats:
            layer.eval()  # in training mode it would continue to count batches
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = False
            layer.register_forward_pre_hook(_check_batch)


def _check_batch(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    (inputs,) = arguments
    if inputs.numel() == inputs.shape[1]:
        raise RunError(
            "a single example has no batch statistics in a layer with one value per channel; choose a task.batch_size "
            "for which no batch has only one example, or set algorithm.outside=global"
        )


def affine_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The scales and shifts of the normalisation layers. Raises RunError if there are none."""
    parameters = [parameter for layer in norm_layers(net).values() for parameter in layer.parameters()]
    if not parameters:
        raise RunError(
            "algorithm.outside=tent or sar adapts the scales and shifts of normalisation layers, but this network has "
            "none; set for example task.network.norm=batch or task.network.norm=[instance,{affine: true}], or "
            "algorithm.outside=batch_stats or algorithm.outside=global"
        )
    return parameters


@torch.enable_grad()
def tent(net: nn.Module, images: Array, *, lr: float, passes: int, batch: int, key: tuple[int | str, ...]) -> None:
    """Train the scales and shifts of `net` in place to lower the entropy of its predictions.

        min over scales and shifts of  mean over batch and space of  H(p) = -sum_c p_c log p_c,  p = softmax(net(x))

    Adam takes one step per batch of `images` (N, C, *space), in an order drawn from `key`. Each batch is normalised
    by the statistics of that batch. Dropout is off. Raises RunError if a parameter is not finite after the last pass.
    """
    parameters = _adapted_parameters(net)
    optimizer = torch.optim.Adam(parameters, lr)
    device = parameters[0].device
    for inputs in _shuffled_batches(images, passes, batch, key):
        optimizer.zero_grad()
        mean_entropy(net(inputs.to(device))).backward()
        optimizer.step()
    net.requires_grad_(False)
    _check_finite(parameters, passes, lr)


@torch.enable_grad()
def sar(net: nn.Module, images: Array, *, lr: float, passes: int, batch: int, key: tuple[int | str, ...]) -> None:
    """Train the scales and shifts v of `net` in place to lower the entropy of its reliable predictions.

        E(v) = mean of H(p) where H(p) < 0.4 log K         e = rho grad E(v) / ||grad E(v)||,  rho = 0.05
        v <- v - lr grad E(v + e),  over the predictions that are reliable at v and at v + e

    SGD with momentum 0.9 takes a step per batch; batches, statistics and errors are as in `tent`. A prediction is that
    of an image or, in segmentation, of a voxel. Our reading: the layers of the last stage are adapted too, and the
    recovery from a collapse is left out, because each evaluation starts from the global model.
    """
    parameters = _adapted_parameters(net)
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
    device = parameters[0].device
    for inputs in _shuffled_batches(images, passes, batch, key):
        inputs = inputs.to(device)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.zero_grad()
        reliable = _backward_reliable(net(inputs), None)
        _ascend(parameters)
        optimizer.zero_grad()
        reliable = _backward_reliable(net(inputs), reliable)
        _copy(before, parameters)
        if reliable.any():
            optimizer.step()
    net.requires_grad_(False)
    _check_finite(parameters, passes, lr)


ADAPTATIONS = {"tent": tent, "sar": sar}


def _adapted_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The scales and shifts of `net`. They are then its only parameters with gradients; dropout is off."""
    use_batch_statistics(net)
    net.eval().requires_grad_(False)
    parameters = affine_parameters(net)
    for parameter in parameters:
        parameter.requires_grad_()
    return parameters


def _check_finite(parameters: list[nn.Parameter], passes: int, lr: float) -> None:
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise RunError(
            f"after {passes} pass(es) of the adaptation, weights are not finite; lower algorithm.outside.lr={lr:g}"
        )


def _backward_reliable(outputs: Tensor, among: Tensor | None) -> Tensor:
    """Whether each prediction (B, *space) is reliable and in `among`. Adds the gradients of their mean entropy."""
    logits = _first(outputs)
    entropies = _entropy(logits)
    reliable = entropies.detach() < SAR_RELIABLE * math.log(logits.shape[1])
    if among is not None:
        reliable &= among
    if reliable.any():
        entropies[reliable].mean().backward()
    return reliable


@torch.no_grad()
def _ascend(parameters: list[nn.Parameter]) -> None:
    """Add e = rho g / ||g|| to the parameters, where g is their gradient; without a gradient they do not change."""
    pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([gradient for _, gradient in pairs]).clamp(min=1e-12)
    for parameter, gradient in pairs:
        parameter.add_(gradient * (SAR_RADIUS / norm))


@torch.no_grad()
def _copy(values: list[Tensor], parameters: list[nn.Parameter]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def mean_entropy(outputs: Tensor) -> Tensor:
    """Mean entropy, in nats, of the softmax of logits (B, K, *space). With several resolutions, the first is used."""
    return _entropy(_first(outputs)).mean()


def _first(outputs: Tensor) -> Tensor:
    """The logits (B, K, *space) of the full resolution, if there are several."""
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    return outputs


def _entropy(logits: Tensor) -> Tensor:
    """The entropy (B, *space), in nats, of the softmax of logits (B, K, *space)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def _shuffled_batches(images: Array, passes: int, batch: int, key: tuple[int | str, ...]) -> Iterator[Tensor]:
    """Batches of all images, once per pass. Batch sizes are nearly equal: a single image would give poor statistics."""
    generator = numpy_generator(*key)
    for _ in range(passes):
        for index in np.array_split(generator.permutation(len(images)), math.ceil(len(images) / batch)):
            yield torch.from_numpy(np.ascontiguousarray(images[index]))
