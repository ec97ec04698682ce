"""The moments of an optimiser as arrays, parameters in one tensor for faster steps, and the mean loss of a round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raysim.core.contracts import Array
from raysim.core.errors import RunError

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


def mean_loss(losses: list[Tensor], parameters: list[nn.Parameter]) -> float:
    """The mean of `losses`, one for each step. Raises RunError if one of them, or a parameter, is not finite."""
    # One check after the last step: a check in each step would make the GPU wait for the CPU.
    size = nn.utils.get_total_norm([p.detach() for p in parameters])
    *values, size = torch.stack([*(loss.float() for loss in losses), size.float()]).cpu()
    step = next((i for i, value in enumerate(values) if not value.isfinite()), None)
    if step is not None or not size.isfinite():
        what = f"the loss is {values[step].item()}" if step is not None else "the weights are not finite"
        raise RunError(
            f"{what} at step {len(values) if step is None else step + 1} of {len(values)}; lower the learning rate "
            "(algorithm.lr), clip the gradient (algorithm.clip=1), or check the site's data"
        )
    mean: float = torch.stack(values).double().mean().item()
    return mean
