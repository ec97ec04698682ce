"""Losses by name: MONAI's on voxels, and those on classes, with the arguments a task knows filled in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from monai import losses as monai_losses
from monai.losses.focal_loss import FocalLoss
from torch import Tensor, nn

from raysim.core.errors import ConfigError
from raysim.core.network_outputs import full_resolution
from raysim.core.suggestions import squash
from raysim.tasks.factory_lookup import Factory, check_arguments, find_factory, parameters
from raysim.tasks.networks import first_line

Loss = Callable[[Tensor, Tensor], Tensor]


class CrossEntropyLoss(nn.Module):
    """torch's cross-entropy for labels (B, 1); `weight` is a number for each class."""

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.measure = nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.measure(logits, labels[:, 0].long())
        return value


def segmentation_loss(spec: Mapping[str, Any]) -> Loss:
    """A picklable loss(logits (B, K, *space), labels (B, 1, *space) of class indices) -> scalar."""
    return _made(spec, _losses())


def class_loss(spec: Mapping[str, Any]) -> Loss:
    """A picklable loss(logits (B, K), labels (B, 1) of class indices) -> scalar: cross-entropy, or MONAI's focal."""
    return _made(spec, {maker.__name__: maker for maker in (CrossEntropyLoss, FocalLoss)})


def _made(spec: Mapping[str, Any], makers: Mapping[str, Factory]) -> Loss:
    name = spec.get("name")
    short = {key.removesuffix("Loss"): maker for key, maker in makers.items()}
    plain = isinstance(name, str) and not squash(name).endswith("loss")
    maker = find_factory("loss", name, short if plain else makers)
    arguments: dict[str, Any] = {
        key: True for key in ("to_onehot_y", "softmax", "use_softmax") if key in parameters(maker)
    }
    arguments |= {key: value for key, value in spec.items() if key != "name"}
    check_arguments("loss", maker, arguments)
    if arguments.get("weight") is not None:
        arguments["weight"] = _class_weights(arguments["weight"])
    try:
        return OutputLoss(maker(**arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {maker.__name__} refuses {dict(spec)}: {error}") from error


def _class_weights(given: Any) -> Tensor:
    """A tensor of what is a list in YAML: some losses take nothing else."""
    try:
        return torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"task.loss.weight={given!r}: expected a number for each class, as in [1, 2]") from error


@dataclass(frozen=True)
class OutputLoss:
    """A loss on what a network puts out in training, lists of resolutions included."""

    measure: nn.Module

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        logits = full_resolution(outputs, labels.ndim)
        # Class weights are buffers of the loss, and the task was made where there may be no GPU.
        value: Tensor = self.measure.to(logits.device)(logits, labels)
        return value


def check_loss(loss: Loss, classes: int, size: Sequence[int]) -> None:
    """Raises ConfigError if the loss fails on logits of `classes` classes, or is no number to descend."""
    logits = torch.zeros(2, classes, *size, requires_grad=True)
    try:
        value = loss(logits, torch.zeros(2, 1, *size, dtype=torch.uint8))
        value.sum().backward()
    except Exception as error:  # whatever a loss dislikes, the user must know
        raise ConfigError(f"the loss fails on {classes} classes: {first_line(error)}; check task.loss") from error
    if value.ndim:
        raise ConfigError(
            f"the loss of a batch has the shape {tuple(value.shape)}: expected a single number; "
            "leave reduction out of task.loss"
        )


@cache
def _losses() -> dict[str, Factory]:
    """Those that judge classes from logits: without a softmax of its own, a loss would misread them."""
    classes = {cls.__name__: cls for cls in vars(monai_losses).values() if inspect.isclass(cls)}
    needs = [{"to_onehot_y", "softmax"}, {"to_onehot_y", "use_softmax"}]
    return {name: cls for name, cls in classes.items() if any(n <= set(parameters(cls)) for n in needs)}
