"""Networks by name, MONAI's and those for tables, with the arguments a task knows filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from monai.networks import nets as monai_nets
from torch import nn

from raysim.core.errors import ConfigError
from raysim.core.network_outputs import full_resolution
from raysim.core.seeding import seeded
from raysim.tasks.factory_lookup import Factory, check_arguments, find_factory, parameters
from raysim.tasks.table_networks import logistic, mlp

NetworkFactory = Callable[[], nn.Module]

# The constructors disagree on what these are called.
INPUTS = ("in_channels", "n_input_channels", "n_channels", "in_features")
OUTPUTS = ("out_channels", "num_classes", "classes", "out_features")
SIZES = ("img_size", "image_size")
SHAPE = "in_shape"  # channels and size in one
DEFAULT_ARGUMENTS: dict[str, dict[str, Any]] = {  # what MONAI wants said, or has for other ends
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "ResNet": {"block": "basic", "layers": (1, 1, 1, 1), "block_inplanes": (16, 32, 64, 128)},
    "ViT": {"classification": True, "post_activation": None},
}
SMALLER = "try fewer levels (shorter channels and strides), another task.data.size, or another task.network"


def network_factory(
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


def check_name(spec: Mapping[str, Any], spatial_dims: int, classes: int) -> None:
    """Raises ConfigError for a network that does not exist or does not take these arguments; makes none."""
    network_factory(spec, spatial_dims=spatial_dims, in_channels=1, out_channels=classes, size=(1,) * spatial_dims)


def network_class(name: object) -> Factory:
    """The constructor of the network of this name. Raises ConfigError, with the nearest one, if there is none."""
    return find_factory("network", name, _networks())


def list_networks() -> dict[str, str]:
    """Every network that a task can size, with the first line of its documentation."""
    return {name: _first_line(maker) for name, maker in sorted(_networks().items())}


def check_network(
    factory: NetworkFactory, in_channels: int, size: Sequence[int], out_channels: int, per_voxel: bool = True
) -> None:
    """Raises ConfigError if the network cannot be made, or fails on an example, or answers in another shape.

    Expects logits (2, out_channels, *size), or (2, out_channels) if not `per_voxel`. Without a size an example is a
    row of a table.
    """
    example = f"an image of {in_channels} channel(s) and size {tuple(size)}" if size else f"{in_channels} features"
    name = getattr(getattr(factory, "func", factory), "__name__", str(factory))
    cure = _cure(factory, _known(len(size), in_channels, out_channels, size))
    expected = (2, out_channels, *(size if per_voxel else ()))
    with seeded("check_network"), torch.no_grad():
        try:
            net = factory()
        except Exception as error:  # whatever a constructor dislikes, the user must know
            cure = cure or "check task.network"
            raise ConfigError(f"network {name} cannot be made: {first_line(error)}; {cure}") from error
        try:
            shape = tuple(full_resolution(net(torch.zeros(2, in_channels, *size)), len(expected)).shape)
        except Exception as error:
            cure = cure or _other(size)
            raise ConfigError(f"network {name} fails on {example}: {first_line(error)}; {cure}") from error
    if shape != expected:
        cure = _unfit(shape, per_voxel) or cure or _other(size)
        raise ConfigError(f"network {name} answers {example} with {shape}, not {expected}; {cure}")


def _other(size: Sequence[int]) -> str:
    return SMALLER if size else "take one for tables: logistic, mlp, or your own"


def _unfit(shape: Sequence[int], per_voxel: bool) -> str:
    """What to say of a network that answers for voxels where it must for images, or the other way round."""
    if per_voxel and len(shape) == 2:
        return "it is no segmentation network; take one that answers for every voxel, such as unet"
    if not per_voxel and len(shape) > 2:
        return "it is no classifier; take one that answers once for an image, such as resnet"
    return ""


def _known(spatial_dims: int, in_channels: int, out_channels: int, size: Sequence[int]) -> dict[str, Any]:
    """What the data decides, by each name that a constructor may have for it."""
    dims = {"spatial_dims": spatial_dims, "dimensions": spatial_dims}
    channels = dict.fromkeys(INPUTS, in_channels) | dict.fromkeys(OUTPUTS, out_channels)
    return dims | channels | dict.fromkeys(SIZES, tuple(size)) | {SHAPE: (in_channels, *size)}


def _cure(factory: NetworkFactory, known: Mapping[str, Any]) -> str:
    """To leave out the arguments that contradict what is `known` of the data; empty if there are none."""
    given = factory.keywords if isinstance(factory, partial) else {}
    wrong = [key for key in known.keys() & given.keys() if _same(given[key]) != _same(known[key])]
    return f"leave {' and '.join(sorted(wrong))} out of task.network: raysim sets it" if wrong else ""


def _same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def _networks() -> dict[str, Factory]:
    found = (value for name, value in vars(monai_nets).items() if callable(value) and name[0] != "_")
    sized = {m.__name__: m for m in found if any(name in parameters(m) for name in (*INPUTS, SHAPE))}
    return sized | {maker.__name__: maker for maker in (logistic, mlp)}


def _shape(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Small but good sizes for the networks that MONAI gives none, following what the user gave."""
    if name in ("UNet", "AttentionUnet", "AutoEncoder"):
        channels = _levels(given, "channels", (16, 32, 64, 128))
        units = {"num_res_units": 2} if name == "UNet" else {}
        return {"channels": channels, "strides": (2,) * (len(channels) - 1), **units}
    if name == "DynUNet":
        strides = _levels(given, "strides", (1, 2, 2, 2))
        return {"strides": strides, "kernel_size": (3,) * len(strides), "upsample_kernel_size": strides[1:]}
    if name == "Classifier":
        channels = _levels(given, "channels", (16, 32, 64, 64))
        return {"channels": channels, "strides": (2,) * len(channels), "num_res_units": 0, "norm": "batch"}
    return DEFAULT_ARGUMENTS.get(name, {})


def _levels(given: Mapping[str, Any], key: str, default: Sequence[int]) -> Sequence[int]:
    """What the user gave for each level of a network, or the default."""
    levels: Sequence[int] = given.get(key, default)
    if not isinstance(levels, list | tuple):
        raise ConfigError(f"task.network.{key}={levels!r}: expected a number for each level, as in {list(default)}")
    return levels


def _first_line(maker: Factory) -> str:
    return next(
        (line.strip() for line in (maker.__doc__ or maker.__init__.__doc__ or "").splitlines() if line.strip()),
        "",
    )


def first_line(error: Exception) -> str:
    """The first line: MONAI appends installation pages and tracebacks."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
