"""The moments of an optimiser as arrays, and parameters in one tensor for faster steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raysim.core.contracts import Array

OptimizerState = dict[str, Array]  # the moments of an optimiser, as arrays by parameter and name


def load_optimizer_state(optimizer: torch.optim.Optimizer, optimizer_state: Mapping[str, Array] | None) -> None:
    """Load the moments returned by `dump_optimizer_state` into `optimizer`. None or an empty state has no effect."""
    if not optimizer_state:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in optimizer_state.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def dump_optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Copies of the moments of `optimizer` on the CPU, by `index/name`."""
    states = optimizer.state_dict()["state"].items()
    tensors = {f"{index}/{name}": tensor for index, state in states for name, tensor in state.items()}
    return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items() if tensor is not None}


def fuse_parameters(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[Tensor]]:
    """One flat parameter per dtype, and its gradient. `parameters` and their gradients become views of the flat ones.

    An optimiser step is then one operation instead of one per layer. For a small network, iterating over the layers
    takes as long as training them.
    """
    fused, gradients = [], []
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        group = [p for p in parameters if p.dtype == dtype]
        values = torch.empty(sum(p.numel() for p in group), dtype=dtype, device=group[0].device)
        gradient, start = torch.zeros_like(values), 0
        for p in group:
            view = p.size(), p.stride(), start  # keeps the strides, because the format may be channels-last
            p.data, p.grad = values.as_strided(*view).copy_(p.data), gradient.as_strided(*view)
            start += p.numel()
        fused.append(nn.Parameter(values))
        fused[-1].grad = gradient
        gradients.append(gradient)
    return fused, gradients
