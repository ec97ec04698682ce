"""Equal networks as rows of stacked tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from raysim.training.optimizers import OptimizerState, StatefulOptimizer


class StackedNetworks:
    """K networks with equal modules. Each parameter and each buffer of the networks becomes a row of a stacked tensor.

    `rows` are the parameters and buffers of each network by name. `leaves` are the stacked trained parameters (K, ...),
    for an optimiser. `parameters` are those of each network: views of the leaves, with gradients that are views of the
    gradients of the leaves.
    """

    def __init__(self, nets: Sequence[nn.Module], rows: Sequence[Mapping[str, Tensor]]) -> None:
        self.nets = nets
        self.parameters = [
            [each for each in row.values() if isinstance(each, nn.Parameter) and each.requires_grad] for row in rows
        ]
        trained = {name for name, each in rows[0].items() if isinstance(each, nn.Parameter) and each.requires_grad}
        self.tensors: dict[str, Tensor] = {}
        for name in rows[0]:
            values = torch.stack([each[name].detach() for each in rows])
            gradient = torch.zeros_like(values) if name in trained else None
            for number, each in enumerate(rows):
                each[name].data = values[number]
                if gradient is not None:
                    each[name].grad = gradient[number]
            self.tensors[name] = nn.Parameter(values) if name in trained else values
            self.tensors[name].grad = gradient
        self.leaves = [leaf for leaf in self.tensors.values() if isinstance(leaf, nn.Parameter)]

    def zero_gradients(self) -> None:
        """Set all gradients to zero, in place."""
        torch._foreach_zero_([leaf.grad for leaf in self.leaves if leaf.grad is not None])

    def outputs(self, inputs: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The output of each network for its inputs (N, ...): a tensor (K, N, ...) if their shapes are equal.

        Networks whose batches have different sizes, such as the last ones of an epoch, run one after another.
        """
        if any(each.shape != inputs[0].shape for each in inputs):
            return [net(each) for net, each in zip(self.nets, inputs, strict=True)]

        def output(values: dict[str, Tensor], x: Tensor) -> Tensor:
            found: Tensor = functional_call(self.nets[0], values, (x,))
            return found

        stacked: Tensor = vmap(output)(self.tensors, torch.stack(list(inputs)))
        return stacked

    def load_optimizer_states(self, optimizer: StatefulOptimizer, states: Sequence[OptimizerState | None]) -> None:
        """Load the moments of each network, as returned by `dump_optimizer_state`, into the optimiser of the leaves."""
        given = [state for state in states if state]
        if not given:
            return
        loaded: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(self.leaves))}
        for key in given[0]:
            index, _, name = key.partition("/")
            moments = torch.stack([torch.from_numpy(state[key].copy()) for state in given])
            for number, place in self._places()[int(index)]:
                # In new memory, because the fused optimisers of torch ignore strides. Counts of steps are equal.
                value = moments[0] if moments.ndim == 1 else moments[:, place].reshape(self.leaves[number].shape)
                loaded[number][name] = value.clone(memory_format=torch.contiguous_format)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": loaded})

    def dump_optimizer_states(self, optimizer: StatefulOptimizer) -> list[OptimizerState]:
        """The moments of each network on the CPU, as `dump_optimizer_state` returns them."""
        state = optimizer.state_dict()["state"]
        dumped: list[OptimizerState] = [{} for _ in self.nets]
        for index, places in enumerate(self._places()):
            first = state.get(places[0][0], {})
            for name in (name for name, value in first.items() if value is not None):
                if first[name].ndim == 0:
                    rows = [first[name]] * len(self.nets)
                else:
                    rows = list(
                        torch.cat([state[number][name].reshape(len(self.nets), -1) for number, _ in places], dim=1)
                    )
                for each, row in zip(dumped, rows, strict=True):
                    each[f"{index}/{name}"] = row.cpu().numpy().copy()
        return dumped

    def _places(self) -> list[list[tuple[int, slice]]]:
        """For each dtype, the indices of its leaves, and their positions in the flat parameter of `fuse_parameters`."""
        places: dict[torch.dtype, list[tuple[int, slice]]] = {}
        for number, leaf in enumerate(self.leaves):
            group = places.setdefault(leaf.dtype, [])
            start = group[-1][1].stop if group else 0
            group.append((number, slice(start, start + leaf[0].numel())))
        return list(places.values())
