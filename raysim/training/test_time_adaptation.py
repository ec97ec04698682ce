"""A network fitted to a place that has images and no labels: statistics of the batch, and Tent.

Batch statistics: Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek, "Evaluating Prediction-Time Batch
Normalization for Robustness under Covariate Shift", 2020, https://arxiv.org/abs/2006.10963, and Schneider, Rusak, Eck,
Bringmann, Brendel, Bethge, "Improving Robustness against Common Corruptions by Covariate Shift Adaptation", NeurIPS
2020, https://arxiv.org/abs/2006.16971. Tent: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time
Adaptation by Entropy Minimization", ICLR 2021, https://arxiv.org/abs/2006.10726.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from raysim.core.contracts import Array
from raysim.core.errors import RunError
from raysim.core.seeding import numpy_generator

NORMALISATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: batch and instance, 1-D to 3-D


def norm_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The normalisation layers of `net` by name: batch, instance, group, layer and RMS norm."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, NORMALISATIONS)}


def use_batch_statistics(net: nn.Module) -> None:
    """From now on `net` normalises each batch by the batch's own mean and variance, where it kept running ones.

    It then raises RunError, with the cure, for a batch that has none: one example with one value per channel.
    """
    for layer in norm_layers(net).values():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            layer.eval()  # in training mode it would go on counting what it sees
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = False
            layer.register_forward_pre_hook(_check_batch)


def _check_batch(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    (inputs,) = arguments
    if inputs.numel() == inputs.shape[1]:
        raise RunError(
            "one example alone has no batch statistics where a layer has one value per channel; choose a "
            "task.batch_size that leaves no last batch of one, or algorithm.outside=global"
        )


def affine(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of the normalisation layers. Raises RunError, with the cure, if there are none."""
    found = [parameter for layer in norm_layers(net).values() for parameter in layer.parameters()]
    if not found:
        raise RunError(
            "algorithm.outside=tent adapts the scales and shifts of normalisation layers, and this network has none; "
            "give it some, as in task.network.norm=batch or task.network.norm=[instance,{affine: true}], "
            "or take algorithm.outside=batch_stats or global"
        )
    return found


@torch.enable_grad()
def tent(net: nn.Module, images: Array, *, lr: float, passes: int, batch: int, key: tuple[int | str, ...]) -> None:
    """Fit the normalisation layers' parameters of `net` in place, so that its predictions get more certain.

        min over scales and shifts of  mean over batch and space of  H(p) = -sum_c p_c log p_c,  p = softmax(net(x))

    Adam takes a step for each batch of `images` (N, C, *space), in orders drawn by `key`. Each batch is normalised
    by its own statistics. Dropout stays off. Raises RunError if a weight is no longer finite after the last pass.
    """
    use_batch_statistics(net)
    net.eval().requires_grad_(False)
    parameters = [parameter.requires_grad_() for parameter in affine(net)]
    optimizer = torch.optim.Adam(parameters, lr)
    device = parameters[0].device
    for inputs in _batches(images, passes, batch, key):
        optimizer.zero_grad()
        entropy(net(inputs.to(device))).backward()
        optimizer.step()
    net.requires_grad_(False)
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise RunError(f"tent left weights that are not finite after {passes} pass(es); lower algorithm.tent_lr={lr:g}")


def entropy(outputs: Tensor) -> Tensor:
    """Mean entropy, in nats, of the softmax of logits (B, K, *space); of several resolutions the first counts."""
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    logs = outputs.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def _batches(images: Array, passes: int, batch: int, key: tuple[int | str, ...]) -> Iterator[Tensor]:
    """All images in each pass, in batches of nearly one size: the statistics of a lone last image would be its own."""
    chance = numpy_generator(*key)
    for _ in range(passes):
        for index in np.array_split(chance.permutation(len(images)), math.ceil(len(images) / batch)):
            yield torch.from_numpy(np.ascontiguousarray(images[index]))
