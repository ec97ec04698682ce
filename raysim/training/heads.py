"""The head of a network: the layers behind the representation, which some methods train or keep separately."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raysim.core.errors import ConfigError


def head_layer(net: nn.Module, shape: Sequence[int], head: str | None = None) -> str:
    """`head`, by default the name of the last layer. The layers with that name or below it are the head of `net`.

    `shape` is that of an example. Raises ConfigError if no trained layer is in the head, or all of them are.
    """
    name = last_layer(net, shape) if head is None else head
    trained = {parameter for parameter, value in net.named_parameters() if value.requires_grad}
    if len({parameter for parameter in trained if within(parameter, name)}) in (0, len(trained)):
        raise ConfigError(
            f"algorithm.head={name}: expected a name that matches some layers, but not all; layers of the network: "
            f"{', '.join(layers(net))}"
        )
    return name


def within(name: str, prefix: str) -> bool:
    """Whether `name` is `prefix` or is below it: fc.weight is below fc, but not below f."""
    return f"{name}.".startswith(f"{prefix}.")


def layers(net: nn.Module) -> list[str]:
    """The names of all layers with parameters, without those that only contain other layers."""
    return [name for name, layer in net.named_modules() if list(layer.parameters(recurse=False))]


def last_layer(net: nn.Module, shape: Sequence[int]) -> str:
    """The last layer, in order of `named_modules`, whose parameters affect the output for an example of `shape`.

    Raises ConfigError if no trained layer affects the output.
    """
    output = net.eval()(torch.zeros(1, *shape))
    while not isinstance(output, Tensor):
        output = output[0]  # the full resolution, if there are several
    for name in reversed(layers(net)):
        trained = [p for p in net.get_submodule(name).parameters(recurse=False) if p.requires_grad]
        if not trained:
            continue
        gradients = torch.autograd.grad(output.sum(), trained, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            return name
    raise ConfigError("no trained layer affects the network's output, so no layer can be the head")
