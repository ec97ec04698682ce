"""Networks by name: those of MONAI and those for tabular data. Arguments that depend on the data are filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from raysim.core.errors import ConfigError
from raysim.core.model import describe_unsupported
from raysim.core.network_factories import NetworkFactory
from raysim.core.network_outputs import full_resolution
from raysim.core.seeding import seeded
from raysim.tasks.factory_lookup import (
    Factory,
    check_arguments,
    doc_summary,
    factory_parameters,
    find_factory,
    format_error,
)
from raysim.tasks.initial_weights import find_file
from raysim.tasks.network_keys import WEIGHTS, network_arguments
from raysim.tasks.tabular_networks import logistic, mlp

# The constructors use different names for these arguments.
INPUT_ARGUMENTS = ("in_channels", "n_input_channels", "n_channels", "in_features")
OUTPUT_ARGUMENTS = ("out_channels", "num_classes", "classes", "out_features")
SIZE_ARGUMENTS = ("img_size", "image_size")
SHAPE_ARGUMENT = "in_shape"  # channels and size in one argument
DEFAULT_ARGUMENTS: dict[str, dict[str, Any]] = {  # where MONAI has no default, or a default for another purpose
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "ResNet": {"block": "basic", "layers": (1, 1, 1, 1), "block_inplanes": (16, 32, 64, 128)},
    "ViT": {"classification": True, "post_activation": None},
}
SMALLER_NETWORK_ADVICE = (
    "try fewer levels (shorter channels and strides), another task.data.size or task.data.patch, or another "
    "task.network"
)


def network_factory(
    spec: Mapping[str, Any], *, spatial_dims: int, in_channels: int, out_channels: int, size: Sequence[int]
) -> NetworkFactory:
    """A picklable factory of the network that `spec` names; the other keys of `spec` are its arguments.

    Dimensions, channels and image size are filled in if the constructor accepts them and `spec` does not have them.
    """
    network = find_network(spec.get("name"))
    accepted = factory_parameters(network)
    data_arguments = _data_arguments(spatial_dims, in_channels, out_channels, size) | {"pretrained": False}
    given = network_arguments(spec)
    arguments = {key: value for key, value in data_arguments.items() if key in accepted} | given
    if network in _networks().values():  # your own network may have the name of one of these
        arguments = _default_sizes(network.__name__, arguments) | arguments
    check_arguments("network", network, arguments)
    return partial(network, **arguments)


def check_network_spec(spec: Mapping[str, Any], spatial_dims: int, classes: int) -> None:
    """Raises ConfigError for an unknown network, arguments that it does not accept, and weights that do not exist.

    The network is not created.
    """
    if spec.get(WEIGHTS) is not None:
        find_file(spec[WEIGHTS])
    network_factory(spec, spatial_dims=spatial_dims, in_channels=1, out_channels=classes, size=(1,) * spatial_dims)


def find_network(name: object) -> Factory:
    """The constructor of the network with this name. Raises ConfigError, with the nearest name, if there is none."""
    return find_factory("network", name, _networks())


def list_networks() -> dict[str, str]:
    """Every network for the data of a task, with the first sentence of its documentation."""
    return {name: doc_summary(network) for name, network in sorted(_networks().items())}


def check_network(
    factory: NetworkFactory, in_channels: int, size: Sequence[int], out_channels: int, per_voxel: bool = True
) -> None:
    """Raises ConfigError if the network cannot be created, fails on an example, or does not return logits.

    Expects logits (2, out_channels, *size), or (2, out_channels) if not `per_voxel`. Without a size, an example is a
    row of a table.
    """
    name, own = _name(factory), _is_own(factory)
    advice = _conflict_advice(factory, _data_arguments(len(size), in_channels, out_channels, size))
    with seeded("check_network"), torch.no_grad():
        try:
            net = factory()
        except Exception as error:  # constructors raise errors of many types
            advice = advice or "check task.network"
            raise ConfigError(f"network {name} cannot be created: {format_error(error)}; {advice}") from error
        if problem := describe_unsupported(net):
            raise ConfigError(f"network {name} cannot be sent between server and sites: {problem}")
        expected = (2, out_channels, *(size if per_voxel else ()))
        # A network of a library returns logits in both modes or in neither, and a volume takes seconds.
        for training in (True, False) if own else (True,):
            _check_output(net.train(training), name, (2, in_channels, *size), expected, advice or _advice(own, size))


def _check_output(net: nn.Module, name: str, shape: Sequence[int], expected: tuple[int, ...], advice: str) -> None:
    """Raises ConfigError if the network fails on inputs of this shape, or does not return logits of the expected one.

    Random inputs are tried only if the outputs for zeros are probabilities.
    """
    _, channels, *size = shape
    example = f"an image of {channels} channel(s) and size {tuple(size)}" if size else f"{channels} features"
    try:
        output = full_resolution(net(torch.zeros(*shape)), len(expected))
        is_softmax = tuple(output.shape) == expected and _are_probabilities(output)
        for scale in (1, 10) if is_softmax else ():
            other = full_resolution(net(scale * torch.randn(*shape)), len(expected))
            is_softmax &= _are_probabilities(other) and not torch.equal(other, output)
    except Exception as error:
        mode = "" if net.training else " in evaluation mode"
        raise ConfigError(f"network {name} fails on {example}{mode}: {format_error(error)}; {advice}") from error
    if tuple(output.shape) != expected:
        advice = _wrong_output_advice(output.shape, len(expected) > 2) or advice
        raise ConfigError(
            f"network {name} returns the shape {tuple(output.shape)}, not {expected}, for {example}; {advice}"
        )
    if is_softmax:
        raise ConfigError(
            f"network {name} returns probabilities, whose sum over the classes is 1, but loss and metrics expect "
            "logits; remove the softmax from its end"
        )


def _are_probabilities(output: Tensor) -> bool:
    """Whether all values are from 0 to 1 and their sum over the classes (axis 1) is 1."""
    total = output.float().sum(1)
    return bool((output >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-3))


def _name(factory: NetworkFactory) -> str:
    return str(getattr(getattr(factory, "func", factory), "__name__", factory))


def _is_own(factory: NetworkFactory) -> bool:
    """Whether the network is neither MONAI's nor raysim's."""
    module = getattr(getattr(factory, "func", factory), "__module__", "")
    return module.partition(".")[0] not in ("monai", "raysim")


def _advice(own: bool, size: Sequence[int]) -> str:
    if own:
        return "correct your network, or use another task.network"
    return SMALLER_NETWORK_ADVICE if size else "use a network for tables: logistic, mlp, or your own"


def _wrong_output_advice(shape: Sequence[int], per_voxel: bool) -> str:
    """The advice for a network with outputs per voxel instead of per image, or the reverse; empty for other shapes."""
    if per_voxel and len(shape) == 2:
        return "it is not a segmentation network; use a network with an output for every voxel, such as unet"
    if not per_voxel and len(shape) > 2:
        return "it is not a classifier; use a network with one output per image, such as resnet"
    return ""


def _data_arguments(spatial_dims: int, in_channels: int, out_channels: int, size: Sequence[int]) -> dict[str, Any]:
    """The arguments that the data determine, under every name that a constructor may use."""
    dims = {"spatial_dims": spatial_dims, "dimensions": spatial_dims}
    channels = dict.fromkeys(INPUT_ARGUMENTS, in_channels) | dict.fromkeys(OUTPUT_ARGUMENTS, out_channels)
    return dims | channels | dict.fromkeys(SIZE_ARGUMENTS, tuple(size)) | {SHAPE_ARGUMENT: (in_channels, *size)}


def _conflict_advice(factory: NetworkFactory, data_arguments: Mapping[str, Any]) -> str:
    """The advice to leave out arguments that conflict with those the data determine; empty if there are none."""
    given = factory.keywords if isinstance(factory, partial) else {}
    shared = data_arguments.keys() & given.keys()
    wrong = [key for key in shared if _as_tuple(given[key]) != _as_tuple(data_arguments[key])]
    return f"remove {' and '.join(sorted(wrong))} from task.network, because raysim sets it" if wrong else ""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def _networks() -> dict[str, Factory]:
    from monai.networks import nets as monai_nets  # here, because MONAI takes longer to import than torch

    found = (value for name, value in vars(monai_nets).items() if callable(value) and name[0] != "_")
    inputs = {*INPUT_ARGUMENTS, SHAPE_ARGUMENT}
    sized = {network.__name__: network for network in found if inputs & factory_parameters(network).keys()}
    return sized | {network.__name__: network for network in (logistic, mlp)}


def _default_sizes(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Default sizes of the networks for which MONAI has none, consistent with the arguments `given`."""
    if name in ("UNet", "AttentionUnet", "AutoEncoder"):
        channels = _per_level(given, "channels", (16, 32, 64, 128))
        units = {"num_res_units": 2} if name == "UNet" else {}
        return {"channels": channels, "strides": (2,) * (len(channels) - 1), **units}
    if name == "DynUNet":
        strides = _per_level(given, "strides", (1, 2, 2, 2))
        return {"strides": strides, "kernel_size": (3,) * len(strides), "upsample_kernel_size": strides[1:]}
    if name == "Classifier":
        channels = _per_level(given, "channels", (16, 32, 64, 64))
        return {"channels": channels, "strides": (2,) * len(channels), "num_res_units": 0, "norm": "batch"}
    return DEFAULT_ARGUMENTS.get(name, {})


def _per_level(given: Mapping[str, Any], key: str, default: Sequence[int]) -> Sequence[int]:
    """The values given for each level of a network, or the default."""
    levels: Sequence[int] = given.get(key, default)
    if not isinstance(levels, list | tuple):
        raise ConfigError(f"task.network.{key}={levels!r}: expected a number for each level, as in {list(default)}")
    return levels
