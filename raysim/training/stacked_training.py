"""The training of several networks of equal shape in one batch: a step is one step of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raysim.core.contracts import Batch
from raysim.training.optimizers import LocalOptimizer, mean_loss
from raysim.training.stacked_losses import can_stack_loss, stacked_losses
from raysim.training.stacked_networks import StackedNetworks, StackedParameters

if TYPE_CHECKING:
    from raysim.training.site_batch import FitRequest

Outcome = float | Exception  # the mean loss of a training, or its error


class StackedTraining:
    """Trains the networks of requests with equal `key` in one batch. A failure ends only the training of its site."""

    def __init__(self, requests: Sequence[FitRequest]) -> None:
        self.requests = requests
        self.stack = StackedNetworks([request.net for request in requests], [request.tensors for request in requests])
        self.optimizers = [self._optimizer([*rows]) for _, rows in groupby(range(len(requests)), self._optimizer_key)]
        self.batches = [request.batches() for request in requests]
        self.losses: list[list[Tensor]] = [[] for _ in requests]
        self.failed: dict[int, Exception] = {}

    def run(self) -> list[Outcome]:
        """The outcome of each training."""
        for _ in range(self.requests[0].steps):
            drawn = [
                # Only an augmentation may draw from the generators of numpy and random.
                self._attempt(number, next, batches, torch_only=request.site.task.augment is None)
                for number, (request, batches) in enumerate(zip(self.requests, self.batches, strict=True))
            ]
            if len(self.failed) == len(self.requests):
                break
            self._step(drawn)
        for rows, leaves, optimizer in self.optimizers:
            if self.requests[rows[0]].optimizer_state is not None:  # equal keys: all or none have a state
                for number, state in zip(rows, leaves.dump_optimizer_states(optimizer), strict=True):
                    kept = self.requests[number].optimizer_state
                    assert kept is not None
                    kept.update(state)
        means = [
            self._attempt(number, mean_loss, losses, parameters, torch_only=True)
            for number, (losses, parameters) in enumerate(zip(self.losses, self.stack.parameters, strict=True))
        ]
        return [self.failed.get(number, mean) for number, mean in enumerate(means)]

    def _optimizer_key(self, number: int) -> Any:
        return self.requests[number].optimizer_key

    def _optimizer(self, rows: Sequence[int]) -> tuple[Sequence[int], StackedParameters, LocalOptimizer]:
        """The optimiser of the networks `rows`, which have the same optimiser key."""
        request, leaves = self.requests[rows[0]], self.stack.parameters_of(rows)
        optimizer = request.training.make_optimizer(leaves.leaves, request.site)
        leaves.load_optimizer_states(optimizer, [self.requests[number].optimizer_state for number in rows])
        return rows, leaves, optimizer

    def _step(self, drawn: Sequence[Batch | None]) -> None:
        usable = next(batch for batch in drawn if batch is not None)
        self.stack.zero_gradients()
        with self.requests[0].training.precision(self.requests[0].site):  # equal for all: part of the key
            # The row of a failed site has the batch of another site, and no loss.
            outputs = self.stack.outputs([(batch or usable)[0] for batch in drawn])
            losses = self._losses(outputs, drawn)
        total = [loss for loss in losses.values() if loss is not None]
        if total:
            torch.stack(total).sum().backward()
        for number, (request, parameters) in enumerate(zip(self.requests, self.stack.parameters, strict=True)):
            if request.correct is not None:
                self._attempt(number, request.correct, parameters)
            if request.training.clip is not None:
                nn.utils.clip_grad_norm_(parameters, request.training.clip)
            if (loss := losses.get(number)) is not None:
                self.losses[number].append(loss.detach())
        for _, _, optimizer in self.optimizers:
            optimizer.step()

    def _losses(self, outputs: Tensor | list[Tensor], drawn: Sequence[Batch | None]) -> dict[int, Tensor | None]:
        """The loss of each site that has a batch; None for a site whose loss fails."""
        losses = [request.site.task.loss for request in self.requests]
        if isinstance(outputs, Tensor) and all(loss is losses[0] for loss in losses) and None not in drawn:
            labels = [batch[1] for batch in drawn if batch is not None]
            if can_stack_loss(losses[0], outputs[0], labels[0]):
                with suppress(Exception):  # such as a wrong label at one site, which fails below
                    return dict(enumerate(stacked_losses(losses[0], outputs, labels)))
        return {
            number: self._attempt(number, losses[number], output, batch[1])
            for number, (output, batch) in enumerate(zip(outputs, drawn, strict=True))
            if batch is not None
        }

    def _attempt(self, number: int, work: Callable[..., Any], *arguments: Any, torch_only: bool = False) -> Any:
        """The result of `work`, with the random generators of the site; None for a site that fails or has failed."""
        if number in self.failed:
            return None
        result = self.requests[number].attempt(work, *arguments, torch_only=torch_only)
        if isinstance(result, Exception):
            self.failed[number] = result
            return None
        return result
