"""The local optimiser, its moments as arrays, parameters in one tensor for faster steps, and the mean loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from raysim.core.contracts import Array
from raysim.core.errors import RunError

OptimizerState = dict[str, Array]  # the moments of an optimiser, as arrays by parameter and name


class StatefulOptimizer(Protocol):
    """An optimiser whose state can be read and replaced, as in torch."""

    def state_dict(self) -> dict[str, Any]:
        """A dictionary with the tensors in `state`, by index of the parameter and name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Replaces the state by that of a `state_dict`."""
        ...


@dataclass
class LocalOptimizer:
    """`torch.optim.SGD`, `Adam` or `AdamW` with fused steps, with the same bits and the same names in its state.

    The classes of torch import its compiler when they are created, which takes as long as the import of torch.
    """

    parameters: Sequence[nn.Parameter]
    kind: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float = 0.0  # of SGD
    weight_decay: float = 0.0
    state: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients. Every parameter has one."""
        parameters: list[Tensor] = list(self.parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.kind == "sgd":
            self._step_sgd(parameters, gradients)
        else:
            self._step_adam(parameters, gradients)

    def _step_sgd(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = [self.state.get(index, {}).get("momentum_buffer") for index in range(len(parameters))]
        sgd(
            parameters,
            gradients,
            buffers,
            fused=True,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self.state = {i: {"momentum_buffer": buffer} for i, buffer in enumerate(buffers) if buffer is not None}

    def _step_adam(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        self.state = self.state or {index: _zero_moments(p) for index, p in enumerate(parameters)}
        states = self.state.values()
        adam(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.kind == "adamw",
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The tensors of the moments, by index of the parameter and name; not copied."""
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Replaces the moments; they get device and dtype of the parameters."""
        self.state = {
            index: {name: value.to(p.device, None if name == "step" else p.dtype) for name, value in state.items()}
            for index, state in state_dict["state"].items()
            for p in (self.parameters[index],)
        }


def _zero_moments(parameter: Tensor) -> dict[str, Tensor]:
    """The state of Adam before its first step."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def load_optimizer_state(optimizer: StatefulOptimizer, optimizer_state: Mapping[str, Array] | None) -> None:
    """Load the moments returned by `dump_optimizer_state` into `optimizer`. None or an empty state has no effect."""
    if not optimizer_state:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in optimizer_state.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def dump_optimizer_state(optimizer: StatefulOptimizer) -> OptimizerState:
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
