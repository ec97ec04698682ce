"""MONAI's networks and losses by name, with the arguments a task knows filled in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from monai import losses as monai_losses
from monai.networks import nets as monai_nets
from torch import Tensor, nn

from raysim.errors import ConfigError
from raysim.naming import squash
from raysim.seeding import seeded
from raysim.tasks.lookup import Maker, check_arguments, find, parameters

NetworkFactory = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]

# The constructors disagree on what these are called.
INPUTS = ("in_channels", "n_input_channels", "n_channels")
OUTPUTS = ("out_channels", "num_classes")
SIZES = ("img_size", "image_size")
SMALLER = "try fewer levels (shorter channels and strides), another task.data.size, or another task.network"


def network(
    spec: Mapping[str, Any], *, spatial_dims: int, in_channels: int, out_channels: int, size: Sequence[int]
) -> NetworkFactory:
    """A picklable maker of the network that `spec` names, its arguments beside the name.

    Dimensions, channels and image size are filled in where the constructor takes them and `spec` is silent.
    """
    maker = network_class(spec.get("name"))
    taken = parameters(maker)
    known = _known(spatial_dims, in_channels, out_channels, size) | {"pretrained": False}
    given = {key: value for key, value in spec.items() if key != "name"}
    arguments = {key: value for key, value in known.items() if key in taken} | given
    arguments = _shape(maker.__name__, arguments) | arguments
    check_arguments("network", maker, arguments)
    return partial(maker, **arguments)


def network_class(name: object) -> Maker:
    """The constructor of the network of this name. Raises ConfigError, with the nearest one, if there is none."""
    return find("network", name, _networks())


def list_networks() -> dict[str, str]:
    """Every network of MONAI that a task can size, with the first line of its documentation."""
    return {name: _first_line(maker) for name, maker in sorted(_networks().items())}


def loss(spec: Mapping[str, Any]) -> Loss:
    """A picklable loss(logits (B, K, *space), labels (B, 1, *space) of class indices) -> scalar."""
    makers = _losses()
    name = spec.get("name")
    short = {key.removesuffix("Loss"): maker for key, maker in makers.items()}
    plain = isinstance(name, str) and not squash(name).endswith("loss")
    maker = find("loss", name, short if plain else makers)
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


def full_resolution(outputs: Tensor | Sequence[Tensor], ndim: int) -> Tensor:
    """The logits (B, K, *space), of `ndim` axes, out of all that a network puts out (deep supervision)."""
    if not isinstance(outputs, Tensor):
        return full_resolution(outputs[0], ndim)
    return outputs[:, 0] if outputs.ndim == ndim + 1 else outputs  # DynUNet stacks its heads on axis 1


def check_network(
    factory: NetworkFactory, in_channels: int, size: Sequence[int], out_channels: int, per_voxel: bool = True
) -> None:
    """Raises ConfigError if the network cannot be made, or fails on an image, or answers in another shape.

    Expects logits (2, out_channels, *size), or (2, out_channels) if not `per_voxel`.
    """
    image = f"an image of {in_channels} channel(s) and size {tuple(size)}"
    name = getattr(getattr(factory, "func", factory), "__name__", str(factory))
    cure = _cure(factory, _known(len(size), in_channels, out_channels, size))
    expected = (2, out_channels, *(size if per_voxel else ()))
    with seeded("check_network"), torch.no_grad():
        try:
            net = factory()
        except Exception as error:  # whatever a constructor dislikes, the user must know
            cure = cure or "check task.network"
            raise ConfigError(f"network {name} cannot be made: {_line(error)}; {cure}") from error
        try:
            shape = tuple(full_resolution(net(torch.zeros(2, in_channels, *size)), len(expected)).shape)
        except Exception as error:
            raise ConfigError(f"network {name} fails on {image}: {_line(error)}; {cure or SMALLER}") from error
    if per_voxel and len(shape) == 2:
        cure = "it is no segmentation network; take one that answers for every voxel, such as unet"
    if shape != expected:
        raise ConfigError(f"network {name} answers {image} with {shape}, not {expected}; {cure or SMALLER}")


def check_loss(loss: Loss, classes: int, size: Sequence[int]) -> None:
    """Raises ConfigError if the loss fails on logits of `classes` classes, or is no number to descend."""
    logits = torch.zeros(2, classes, *size, requires_grad=True)
    try:
        value = loss(logits, torch.zeros(2, 1, *size, dtype=torch.uint8))
        value.sum().backward()
    except Exception as error:  # whatever a loss dislikes, the user must know
        raise ConfigError(f"the loss fails on {classes} classes: {_line(error)}; check task.loss") from error
    if value.ndim:
        raise ConfigError(
            f"the loss of a batch has the shape {tuple(value.shape)}: expected a single number; "
            "leave reduction out of task.loss"
        )


def _known(spatial_dims: int, in_channels: int, out_channels: int, size: Sequence[int]) -> dict[str, Any]:
    """What the data decides, by each name that a constructor may have for it."""
    dims = {"spatial_dims": spatial_dims, "dimensions": spatial_dims}
    channels = dict.fromkeys(INPUTS, in_channels) | dict.fromkeys(OUTPUTS, out_channels)
    return dims | channels | dict.fromkeys(SIZES, tuple(size))


def _cure(factory: NetworkFactory, known: Mapping[str, Any]) -> str:
    """To leave out the arguments that contradict what is `known` of the data; empty if there are none."""
    given = factory.keywords if isinstance(factory, partial) else {}
    wrong = [key for key in known.keys() & given.keys() if _same(given[key]) != _same(known[key])]
    return f"leave {' and '.join(sorted(wrong))} out of task.network: raysim sets it" if wrong else ""


def _same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def _networks() -> dict[str, Maker]:
    found = (value for name, value in vars(monai_nets).items() if callable(value) and name[0] != "_")
    return {m.__name__: m for m in found if any(name in parameters(m) for name in INPUTS)}


@cache
def _losses() -> dict[str, Maker]:
    """Those that judge classes from logits: without a softmax of its own, a loss would misread them."""
    classes = {cls.__name__: cls for cls in vars(monai_losses).values() if inspect.isclass(cls)}
    needs = [{"to_onehot_y", "softmax"}, {"to_onehot_y", "use_softmax"}]
    return {name: cls for name, cls in classes.items() if any(n <= set(parameters(cls)) for n in needs)}


def _shape(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Small but good sizes for the networks that MONAI gives none, following what the user gave."""
    if name in ("UNet", "AttentionUnet", "AutoEncoder"):
        channels = _levels(given, "channels", (16, 32, 64, 128))
        units = {"num_res_units": 2} if name == "UNet" else {}
        return {"channels": channels, "strides": (2,) * (len(channels) - 1), **units}
    if name == "DynUNet":
        strides = _levels(given, "strides", (1, 2, 2, 2))
        return {"strides": strides, "kernel_size": (3,) * len(strides), "upsample_kernel_size": strides[1:]}
    named = {"FlexibleUNet": "backbone", "EfficientNetBN": "model_name"}
    return {named[name]: "efficientnet-b0"} if name in named else {}


def _levels(given: Mapping[str, Any], key: str, default: Sequence[int]) -> Sequence[int]:
    """What the user gave for each level of a network, or the default."""
    levels: Sequence[int] = given.get(key, default)
    if not isinstance(levels, list | tuple):
        raise ConfigError(f"task.network.{key}={levels!r}: expected a number for each level, as in {list(default)}")
    return levels


def _first_line(maker: Maker) -> str:
    return next(
        (line.strip() for line in (maker.__doc__ or maker.__init__.__doc__ or "").splitlines() if line.strip()),
        "",
    )


def _line(error: Exception) -> str:
    """The first line: MONAI appends installation pages and tracebacks."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
