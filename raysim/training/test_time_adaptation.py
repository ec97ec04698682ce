"""Adaptation of a network to images without labels, by batch statistics or by Tent.

Batch statistics: Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek, "Evaluating Prediction-Time Batch
Normalization for Robustness under Covariate Shift", 2020, https://arxiv.org/abs/2006.10963, and Schneider, Rusak, Eck,
Bringmann, Brendel, Bethge, "Improving Robustness against Common Corruptions by Covariate Shift Adaptation", NeurIPS
2020, https://arxiv.org/abs/2006.16971. Tent: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time
Adaptation by Entropy Minimization", ICLR 2021, https://arxiv.org/abs/2006.10726.
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
TENT_LR = 1e-3
TENT_PASSES = 1


@dataclass(frozen=True, kw_only=True)
class OutsideAdaptation:
    """How the global model is adapted to an outside site. Raises ValueError for `lr` or `passes` without Tent."""

    name: Annotated[
        Literal["global", "batch_stats", "tent"],
        "model at outside sites. global: the unchanged global model; batch_stats: normalised by the statistics of each "
        "batch; tent: adapted by Tent. Short form: algorithm.outside=tent",
    ] = "global"
    lr: Annotated[float | None, Gt(0), "learning rate of Tent's Adam; default 0.001"] = None
    passes: Annotated[
        int | None, Gt(0), "passes of Tent over an outside site's test images, without labels; default 1"
    ] = None

    def __post_init__(self) -> None:
        if self.name != "tent" and not (self.lr is None and self.passes is None):
            raise ValueError("name=tent with lr or passes, which only Tent has; set name=tent, or remove lr and passes")


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
            "algorithm.outside=tent adapts the scales and shifts of normalisation layers, but this network has none; "
            "set for example task.network.norm=batch or task.network.norm=[instance,{affine: true}], or "
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
    use_batch_statistics(net)
    net.eval().requires_grad_(False)
    parameters = [parameter.requires_grad_() for parameter in affine_parameters(net)]
    optimizer = torch.optim.Adam(parameters, lr)
    device = parameters[0].device
    for inputs in _shuffled_batches(images, passes, batch, key):
        optimizer.zero_grad()
        mean_entropy(net(inputs.to(device))).backward()
        optimizer.step()
    net.requires_grad_(False)
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise RunError(f"after {passes} pass(es) of Tent, weights are not finite; lower algorithm.outside.lr={lr:g}")


def mean_entropy(outputs: Tensor) -> Tensor:
    """Mean entropy, in nats, of the softmax of logits (B, K, *space). With several resolutions, the first is used."""
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    logs = outputs.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def _shuffled_batches(images: Array, passes: int, batch: int, key: tuple[int | str, ...]) -> Iterator[Tensor]:
    """Batches of all images, once per pass. Batch sizes are nearly equal: a single image would give poor statistics."""
    generator = numpy_generator(*key)
    for _ in range(passes):
        for index in np.array_split(generator.permutation(len(images)), math.ceil(len(images) / batch)):
            yield torch.from_numpy(np.ascontiguousarray(images[index]))
