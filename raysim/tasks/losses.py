"""Losses by name: MONAI's segmentation losses, and losses of classes, labels and numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from raysim.core.errors import ConfigError
from raysim.core.network_outputs import all_resolutions
from raysim.core.suggestions import squash
from raysim.core.targets import Target
from raysim.data.mask_values import IGNORED
from raysim.tasks.factory_lookup import (
    Factory,
    check_arguments,
    doc_summary,
    factory_parameters,
    find_factory,
    format_error,
)
from raysim.tasks.loss_modules import BCEWithLogitsLoss, CrossEntropyLoss

Loss = Callable[[Tensor, Tensor], Tensor]
FOR_CLASSES = ("to_onehot_y", "softmax", "use_softmax")  # arguments that make a loss accept logits and class indices
WEIGHTS = {"weight", "pos_weight"}
NO_GRADIENT = "has no gradient; compute it from the logits with torch, without argmax, detach or numpy"
# MONAI's losses that are sums over voxels, in any order.
LOSSES_OF_VOXELS = {
    *("DiceLoss", "GeneralizedDiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss"),
    *("FocalLoss", "TverskyLoss"),
}


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
            f"task.data.ignore is not supported for the loss {spec.get('name')}, which may need whole images; use "
            f"one of {valid}, or remove task.data.ignore"
        )
    return OutputLoss(KnownVoxelsLoss(loss.measure))


def make_classification_loss(spec: Mapping[str, Any]) -> Loss:
    """Cross-entropy or MONAI's focal loss: picklable, (logits (B, K), class indices (B, 1)) -> scalar."""
    return _make_loss(spec, _classification_losses())


def make_label_loss(spec: Mapping[str, Any]) -> Loss:
    """BCE or MONAI's focal loss of each label: picklable, (logits (B, L), 0 and 1 (B, L)) -> scalar."""
    return _make_loss(spec, _label_losses(), ())


def make_number_loss(spec: Mapping[str, Any], scale: tuple[float, float]) -> Loss:
    """A loss of torch: picklable, (outputs (B, 1), numbers (B, 1)) -> scalar; `scale` as in `ScaledLoss`."""
    return ScaledLoss(_make_loss(spec, _number_losses(), ()), *scale)


def list_losses() -> dict[str, dict[str, str]]:
    """Every loss by kind of task, with the first sentence of its documentation."""
    return {
        task: {name: doc_summary(loss) for name, loss in losses.items()} for task, losses in _losses_by_task().items()
    }


def find_loss(name: object) -> Factory:
    """The loss with this name, of any task. Raises ConfigError, with the nearest name, if there is none."""
    return _find_loss(name, {key: loss for losses in _losses_by_task().values() for key, loss in losses.items()})


def _losses_by_task() -> dict[str, dict[str, Factory]]:
    return {
        "segmentation": _segmentation_losses(),
        "classification": _classification_losses(),
        "multilabel": _label_losses(),
        "regression": _number_losses(),
    }


def _make_loss(
    spec: Mapping[str, Any], factories: Mapping[str, Factory], switches: Sequence[str] = FOR_CLASSES
) -> OutputLoss:
    """The loss that `spec` names. `switches` are set to true where the loss has such arguments.

    A class is created with the arguments; a function `f(logits, labels, **arguments)` is itself the loss.
    """
    factory = _find_loss(spec.get("name"), factories)
    given = {key: value for key, value in spec.items() if key != "name"}
    if inspect.isfunction(factory):
        check_arguments("loss", factory, given, supplied=list(inspect.signature(factory).parameters)[:2])
        return OutputLoss(partial(factory, **given))
    accepted = factory_parameters(factory)
    arguments: dict[str, Any] = {key: True for key in switches if key in accepted}
    arguments |= given
    check_arguments("loss", factory, arguments)
    for key in WEIGHTS & {key for key in arguments if arguments[key] is not None}:
        arguments[key] = _to_weight_tensor(key, arguments[key])
    try:
        return OutputLoss(factory(**arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {factory.__name__} does not accept {dict(spec)}: {error}") from error


def _find_loss(name: object, factories: Mapping[str, Factory]) -> Factory:
    short = {key.removesuffix("Loss"): factory for key, factory in factories.items()}
    without_suffix = isinstance(name, str) and not squash(name).endswith("loss")
    return find_factory("loss", name, short if without_suffix else factories)


def _to_weight_tensor(key: str, given: Any) -> Tensor:
    """The list of weights as a tensor, because some losses accept no list."""
    try:
        return torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"task.loss.{key}={given!r}: expected a number for each class or label, as in [1, 2]"
        ) from error


@dataclass(frozen=True)
class OutputLoss:
    """A loss on the training output of a network, which may have several resolutions (deep supervision).

    Their losses are summed with the weights 1, 1/2, 1/4, ..., divided by the sum of these, as in nnU-Net. Labels are
    resampled by nearest neighbour. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
    biomedical image segmentation", Nature Methods 18, 2021.
    """

    measure: Loss

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        heads = all_resolutions(outputs, labels.ndim)
        if len(heads) == 1:
            return _evaluate(self.measure, heads[0], labels)
        total = sum(0.5**level for level in range(len(heads)))
        losses = [_evaluate(self.measure, head, _resample_labels(labels, head)) for head in heads]
        return torch.stack([0.5**level / total * loss for level, loss in enumerate(losses)]).sum()


def _evaluate(measure: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    if isinstance(measure, nn.Module):
        # Class weights are buffers of the loss, and the process that built the task may have no GPU.
        measure.to(logits.device)
    return measure(logits, labels)


def _resample_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (B, 1, *space) with the size of the logits."""
    if labels.shape[2:] == logits.shape[2:]:
        return labels
    return nn.functional.interpolate(labels.float(), logits.shape[2:], mode="nearest-exact").to(labels.dtype)


@dataclass(frozen=True)
class KnownVoxelsLoss:
    """The mean of a loss over the examples of a batch, each without its voxels that have the label IGNORED.

    An example without other voxels is left out; a batch without other voxels has the loss 0.
    """

    measure: Loss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        values = []
        for example, label in zip(logits, labels, strict=True):
            known = label[0] != IGNORED
            if known.any():
                values.append(_evaluate(self.measure, example[:, known][None], label[:, known][None]))
        return torch.stack(values).mean() if values else 0 * logits.sum()


@dataclass(frozen=True)
class ScaledLoss:
    """A loss of (outputs, (labels - offset) / unit): the outputs of the network have about mean 0 and deviation 1."""

    loss: OutputLoss
    offset: float
    unit: float

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(outputs, (labels - self.offset) / self.unit)


def check_loss(loss: Loss, classes: int, size: Sequence[int], target: Target = Target.CLASS) -> None:
    """Raises ConfigError if the loss fails on an example with all classes, or returns no finite scalar with a gradient.

    The example has logits from -1 to 1.
    """
    shape = (2 if size else max(2, classes), classes if target is Target.LABELS else 1, *size)
    labels = (torch.arange(prod(shape)) % (2 if target is Target.LABELS else min(classes, 256))).reshape(shape)
    labels = labels.to(torch.float32 if target is Target.NUMBER else torch.uint8)
    outputs = shape[0], classes, *size
    logits = torch.linspace(-1, 1, prod(outputs)).reshape(outputs).requires_grad_()
    try:
        value = loss(logits, labels)
        if problem := _describe_wrong_loss(value):
            raise ConfigError(f"the loss of a batch {problem}")
        value.backward()
    except ConfigError:
        raise
    except Exception as error:  # losses raise errors of many types
        example = {Target.CLASS: f"{classes} classes", Target.LABELS: f"{classes} labels", Target.NUMBER: "a number"}
        raise ConfigError(f"the loss fails on {example[target]}: {format_error(error)}; check task.loss") from error
    if logits.grad is None:
        raise ConfigError(f"the loss of a batch {NO_GRADIENT}")


def _describe_wrong_loss(value: Any) -> str:
    """The defect of the loss of a batch, with the cure; empty if the loss can be used for training."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}: expected a tensor; return it without float() or .item()"
    if value.ndim:
        return (
            f"has the shape {tuple(value.shape)}: expected a single number; remove reduction from task.loss, or return "
            "the mean"
        )
    if not value.requires_grad:
        return NO_GRADIENT
    if not value.isfinite():
        return f"is {value.item()} for logits from -1 to 1: expected a finite number; check task.loss"
    return ""


@cache
def _classification_losses() -> dict[str, Factory]:
    from monai.losses.focal_loss import FocalLoss  # here, because MONAI takes longer to import than torch

    return {factory.__name__: factory for factory in (CrossEntropyLoss, FocalLoss)}


@cache
def _label_losses() -> dict[str, Factory]:
    from monai.losses.focal_loss import FocalLoss  # here, because MONAI takes longer to import than torch

    return {factory.__name__: factory for factory in (BCEWithLogitsLoss, FocalLoss)}


def _number_losses() -> dict[str, Factory]:
    return {factory.__name__: factory for factory in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)}


@cache
def _segmentation_losses() -> dict[str, Factory]:
    """MONAI's losses that accept logits and class indices: they apply softmax and one-hot encoding themselves."""
    from monai import losses as monai_losses  # here, because MONAI takes longer to import than torch

    classes = {cls.__name__: cls for cls in vars(monai_losses).values() if inspect.isclass(cls)}
    required = [{"to_onehot_y", "softmax"}, {"to_onehot_y", "use_softmax"}]
    return {name: cls for name, cls in classes.items() if any(n <= set(factory_parameters(cls)) for n in required)}
