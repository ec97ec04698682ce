"""The losses of several networks as one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from raysim.core.seeding import preserve_rng

TOLERANCE = 1e-3  # largest difference between the numbers of stacked and of single networks, relative to the numbers
Loss = Callable[[Tensor, Tensor], Tensor]

_can_stack_loss: dict[int, tuple[Loss, bool]] = {}  # by the id of a loss, which is kept so that its id is not reused


class _ScatterToNewTensor(TorchFunctionMode):
    """Replaces `scatter_` by `scatter`: MONAI's losses use it for one-hot labels, and vmap supports only the second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (Tensor.scatter if func is Tensor.scatter_ else func)(*args, **(kwargs or {}))


def stacked_losses(loss: Loss, outputs: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """The loss of each network's outputs, as one operation for all networks."""
    with _ScatterToNewTensor():
        return list(vmap(loss)(outputs, torch.stack(list(labels))))


def can_stack_loss(loss: Loss, outputs: Tensor, labels: Tensor) -> bool:
    """Whether `stacked_losses` has the values and gradients of single losses; tried once for each loss.

    Uses the shapes of the outputs and labels (N, ...) of one network, not their values: every process finds the same.
    """
    if id(loss) not in _can_stack_loss:
        with preserve_rng():
            try:
                agrees = _loss_agrees(loss, outputs, labels)
            except Exception:  # noqa: BLE001 - what vmap does not support raises different errors
                agrees = False
        _can_stack_loss[id(loss)] = loss, agrees
    return _can_stack_loss[id(loss)][1]


def _loss_agrees(loss: Loss, outputs: Tensor, labels: Tensor) -> bool:
    numbers = torch.arange(2 * labels.numel(), device=labels.device) // 3 % 2  # 0 and 1 are valid labels of all tasks
    tried = numbers.reshape(2, *labels.shape).to(labels.dtype)
    logits = torch.linspace(-1, 1, 2 * outputs.numel(), device=outputs.device).reshape(2, *outputs.shape)
    rows = [logits.to(outputs.dtype, copy=True).requires_grad_() for _ in range(2)]
    together = torch.stack(stacked_losses(loss, rows[0], list(tried)))
    alone = torch.stack([loss(output, label) for output, label in zip(rows[1], tried, strict=True)])
    found, expected = (
        torch.autograd.grad(each.sum(), row)[0] for each, row in zip((together, alone), rows, strict=True)
    )
    return is_close(together, alone) and is_close(found, expected)


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether the numbers of stacked networks or losses are those of single ones, up to rounding."""
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
