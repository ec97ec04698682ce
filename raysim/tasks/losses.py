"""Losses by name: MONAI's segmentation losses, and classification losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from raysim.core.errors import ConfigError
from raysim.core.network_outputs import full_resolution
from raysim.core.suggestions import squash
from raysim.data.mask_values import IGNORED
from raysim.tasks.factory_lookup import Factory, check_arguments, factory_parameters, find_factory
from raysim.tasks.networks import format_error

Loss = Callable[[Tensor, Tensor], Tensor]
# MONAI's losses that are sums over voxels, in any order.
LOSSES_OF_VOXELS = {
    *("DiceLoss", "GeneralizedDiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss"),
    *("FocalLoss", "TverskyLoss"),
}


class CrossEntropyLoss(nn.Module):
    """The cross-entropy of torch, for labels (B, 1); `weight` has a number per class."""

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.measure = nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.measure(logits, labels[:, 0].long())
        return value


def make_segmentation_loss(spec: Mapping[str, Any], ignored: bool = False) -> Loss:
    """The loss of this name: picklable, (logits (B, K, *space), class indices (B, 1, *space)) -> scalar.

    `ignored`: whether voxels with the label IGNORED are left out. Raises ConfigError if the loss cannot leave them out.
    """
    loss = _make_loss(spec, _segmentation_losses())
    if not ignored:
        return loss
    if type(loss.measure).__name__ not in LOSSES_OF_VOXELS:
        valid = ", ".join(sorted(LOSSES_OF_VOXELS))
        raise ConfigError(
            f"task.data.ignore has no effect on the loss {type(loss.measure).__name__}, which needs whole images; use "
            f"one of {valid}, or remove task.data.ignore"
        )
    return KnownVoxelsLoss(loss)


def make_classification_loss(spec: Mapping[str, Any]) -> Loss:
    """Cross-entropy or MONAI's focal loss: picklable, (logits (B, K), class indices (B, 1)) -> scalar."""
    from monai.losses.focal_loss import FocalLoss  # here, because MONAI takes longer to import than torch

    return _make_loss(spec, {factory.__name__: factory for factory in (CrossEntropyLoss, FocalLoss)})


def _make_loss(spec: Mapping[str, Any], factories: Mapping[str, Factory]) -> OutputLoss:
    """The loss that `spec` names, with arguments that make it accept logits and class indices."""
    name = spec.get("name")
    short = {key.removesuffix("Loss"): factory for key, factory in factories.items()}
    without_suffix = isinstance(name, str) and not squash(name).endswith("loss")
    factory = find_factory("loss", name, short if without_suffix else factories)
    arguments: dict[str, Any] = {
        key: True for key in ("to_onehot_y", "softmax", "use_softmax") if key in factory_parameters(factory)
    }
    arguments |= {key: value for key, value in spec.items() if key != "name"}
    check_arguments("loss", factory, arguments)
    if arguments.get("weight") is not None:
        arguments["weight"] = _to_weight_tensor(arguments["weight"])
    try:
        return OutputLoss(factory(**arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {factory.__name__} does not accept {dict(spec)}: {error}") from error


def _to_weight_tensor(given: Any) -> Tensor:
    """The list of weights as a tensor, because some losses accept no list."""
    try:
        return torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"task.loss.weight={given!r}: expected a number for each class, as in [1, 2]") from error


@dataclass(frozen=True)
class OutputLoss:
    """A loss on the training output of a network, which may be a list of resolutions (deep supervision)."""

    measure: nn.Module

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        logits = full_resolution(outputs, labels.ndim)
        # Class weights are buffers of the loss, and the process that built the task may have no GPU.
        value: Tensor = self.measure.to(logits.device)(logits, labels)
        return value


@dataclass(frozen=True)
class KnownVoxelsLoss:
    """The mean of a loss over the examples of a batch, each without its voxels that have the label IGNORED.

    An example without other voxels is left out; a batch without other voxels has the loss 0.
    """

    loss: OutputLoss

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        logits = full_resolution(outputs, labels.ndim)
        values = []
        for example, label in zip(logits, labels, strict=True):
            known = label[0] != IGNORED
            if known.any():
                values.append(self.loss(example[:, known][None], label[:, known][None]))
        return torch.stack(values).mean() if values else 0 * logits.sum()


def check_loss(loss: Loss, classes: int, size: Sequence[int]) -> None:
    """Raises ConfigError if the loss fails on logits of `classes` classes, or is not a scalar with a gradient."""
    logits = torch.zeros(2, classes, *size, requires_grad=True)
    try:
        value = loss(logits, torch.zeros(2, 1, *size, dtype=torch.uint8))
        value.sum().backward()
    except Exception as error:  # losses raise errors of many types
        raise ConfigError(f"the loss fails on {classes} classes: {format_error(error)}; check task.loss") from error
    if value.ndim:
        raise ConfigError(
            f"the loss of a batch has the shape {tuple(value.shape)}: expected a single number; "
            "remove reduction from task.loss"
        )


@cache
def _segmentation_losses() -> dict[str, Factory]:
    """MONAI's losses that accept logits and class indices: they apply softmax and one-hot encoding themselves."""
    from monai import losses as monai_losses  # here, because MONAI takes longer to import than torch

    classes = {cls.__name__: cls for cls in vars(monai_losses).values() if inspect.isclass(cls)}
    required = [{"to_onehot_y", "softmax"}, {"to_onehot_y", "use_softmax"}]
    return {name: cls for name, cls in classes.items() if any(n <= set(factory_parameters(cls)) for n in required)}
