"""Trains the networks of several sites in one batch: their weights are rows of stacked tensors, and a forward pass, a
backward pass and an optimiser step are one operation for all sites. For small networks and images this is faster,
because most of the time of a step is the overhead of launching many small operations.

The client functions of a group of sites run alternately, each in a greenlet: until it trains, or until its end. When
all of them wait for their training, those with equal networks and numbers of steps train together. Everything else in
a client function runs for one site at a time, with the random generators of that site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

from raysim.core.contracts import Batch, Site, Split
from raysim.core.seeding import get_generators, preserve_rng, set_generators
from raysim.training.optimizers import OptimizerState, mean_loss
from raysim.training.stacked_losses import can_stack_loss, is_close, stacked_losses
from raysim.training.stacked_networks import StackedNetworks

if TYPE_CHECKING:
    from raysim.training.local_training import GradientCorrection, LocalTraining

R = TypeVar("R")
Outcome = float | Exception  # the mean loss of a training, or its error

# By the template of a run, and by the signature of a network: those of another run may differ in dropout or strides.
_can_stack: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


class SiteCall:
    """The client function of one site in a greenlet, with the states of the random generators for this site."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.greenlet = greenlet(function)
        self.greenlet.site_call = self  # how `fit` knows that it runs in a group
        self.generators: Any = None

    @property
    def done(self) -> bool:
        return bool(self.greenlet.dead)

    @contextmanager
    def own_generators(self, torch_only: bool = False) -> Iterator[None]:
        """Use the random generators of this site in the block, or only that of torch, which is much faster."""
        if self.generators is not None:
            set_generators(self.generators, torch_only)
        try:
            yield
        finally:
            if not self.done:
                self.generators = get_generators() if not torch_only else (torch.get_rng_state(), *self.generators[1:])

    def proceed(self, outcome: Outcome | None) -> Any:
        """The next `FitRequest`, or the result of the function, which continues with the outcome of its training."""
        with self.own_generators():
            if isinstance(outcome, Exception):
                return self.greenlet.throw(outcome)
            return self.greenlet.switch() if outcome is None else self.greenlet.switch(outcome)


@dataclass(eq=False)
class FitRequest:
    """The training of one network on labelled data of one site: the arguments of `LocalTraining.fit`."""

    training: LocalTraining
    net: nn.Module
    site: Site[Any]
    split: Split
    epochs: int | None
    correct: GradientCorrection | None
    optimizer_state: OptimizerState | None
    call: SiteCall | None = field(default_factory=lambda: getattr(getcurrent(), "site_call", None))

    def run(self) -> float:
        """The mean loss, after training alone or with the other sites of the group."""
        if not self.net.training:
            self.net.train()
        if self.call is None:
            return self.training.fit_alone(self)
        loss: float = self.call.greenlet.parent.switch(self)
        return loss

    def attempt(self, work: Callable[..., R], *arguments: Any, torch_only: bool = False) -> R | Exception:
        """The result of `work` with the random generators of the site, or its exception, to be raised at the site."""
        assert self.call is not None
        with self.call.own_generators(torch_only):
            try:
                return work(*arguments)
            except Exception as error:  # noqa: BLE001 - user code may raise anything
                return error

    def batches(self) -> Iterator[Batch]:
        return self.training.training_batches(self.site, split=self.split, epochs=self.epochs)

    @cached_property
    def steps(self) -> int:
        return self.training.count_steps(self.split, self.site.task.batch_size, self.epochs)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.net.named_modules())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and the buffers of the network by name, each once."""
        found: dict[int, tuple[str, Tensor]] = {}
        for prefix, module in self.modules.items():  # one traversal; named_parameters and named_buffers are two
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    found.setdefault(id(tensor), (f"{prefix}.{name}" if prefix else name, tensor))
        return dict(found.values())

    @cached_property
    def signature(self) -> Any:
        """Equal for networks with the same modules, parameters and buffers."""
        shapes = tuple((name, each.shape, each.dtype, each.requires_grad) for name, each in self.tensors.items())
        modules = tuple((type(module), module.training) for module in self.modules.values())
        return modules, shapes, self.training.amp

    @cached_property
    def key(self) -> Any:
        """Equal for trainings that can be steps of one batch."""
        batch = min(self.site.task.batch_size, len(self.split))
        states = (self.optimizer_state or {}).items()
        steps_done = tuple((name, state.item() if state.ndim == 0 else None) for name, state in sorted(states))
        kind = self.optimizer_state is None, steps_done
        return self.training, self.signature, self.steps, batch, self.training.lr_at(self.site), kind


def run_together(functions: Sequence[Callable[[], R]]) -> list[R]:
    """The results of `functions`, one for each site of a group, which train together where they can.

    Raises the exception of a function; the other functions are then abandoned.
    """
    calls = [SiteCall(function) for function in functions]
    results: dict[int, R] = {}
    outcomes: dict[int, Outcome | None] = dict.fromkeys(range(len(calls)))
    while outcomes:
        requests: dict[int, FitRequest] = {}
        for number, outcome in outcomes.items():
            value = calls[number].proceed(outcome)
            if calls[number].done:
                results[number] = value
            else:
                requests[number] = value
        trained = train_together([*requests.values()])
        outcomes = {number: trained[id(request)] for number, request in requests.items()}
    return [results[number] for number in range(len(calls))]


def train_together(requests: Sequence[FitRequest]) -> dict[int, Outcome]:
    """The outcome of each training, by the id of its request."""
    groups: dict[Any, list[FitRequest]] = {}
    for request in requests:
        groups.setdefault(request.key, []).append(request)
    outcomes: dict[int, Outcome] = {}
    for group in groups.values():
        if len(group) > 1 and can_stack(group[0], group[1]):
            found = StackedTraining(group).run()
        else:
            found = [request.attempt(request.training.fit_alone, request) for request in group]
        outcomes |= dict(zip(map(id, group), found, strict=True))
    return outcomes


def can_stack(first: FitRequest, second: FitRequest) -> bool:
    """Whether the stacked networks have the outputs and gradients of single ones; tried once in a run for a signature.

    False for networks with random layers such as dropout, with several outputs, or with operations without a rule for
    `torch.func.vmap`.
    """
    found = _can_stack.setdefault(first.site.template, {})
    if first.signature not in found:
        with preserve_rng():
            try:
                found[first.signature] = _agrees(first, second)
            except Exception:  # noqa: BLE001 - what vmap does not support raises different errors
                found[first.signature] = False
    return found[first.signature]


def _agrees(first: FitRequest, second: FitRequest) -> bool:
    requests = (first, second)
    drawn = [next(request.batches())[0] for request in requests]
    inputs = torch.stack([batch[: min(map(len, drawn))] for batch in drawn])
    tensors = [each.tensors for each in requests]

    def output(values: dict[str, Tensor], x: Tensor) -> Any:
        with first.training.precision(first.site):
            return functional_call(first.net, values, (x,))

    def copies(values: Sequence[Tensor], trained: bool) -> Tensor:
        return torch.stack([value.detach() for value in values]).requires_grad_(trained)

    stacked = {name: copies([each[name] for each in tensors], tensors[0][name].requires_grad) for name in tensors[0]}
    single = [
        {name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in each.items()}
        for each in tensors
    ]
    together = vmap(output)(stacked, inputs)
    alone = torch.stack([output(values, x) for values, x in zip(single, inputs, strict=True)])
    together.float().square().sum().backward()
    alone.float().square().sum().backward()
    trained = [name for name, value in stacked.items() if value.grad is not None]
    found = torch.cat([torch.as_tensor(stacked[name].grad).flatten() for name in trained])
    expected = torch.cat(
        [torch.stack([torch.as_tensor(each[name].grad) for each in single]).flatten() for name in trained]
    )
    return is_close(together, alone) and is_close(found, expected)


class StackedTraining:
    """The trainings of several sites with equal keys: each step is one step of all. Failures are kept for each site."""

    def __init__(self, requests: Sequence[FitRequest]) -> None:
        self.requests, self.training, self.site = requests, requests[0].training, requests[0].site
        self.stack = StackedNetworks([request.net for request in requests], [request.tensors for request in requests])
        self.optimizer = self.training.make_optimizer(self.stack.leaves, self.site)
        self.stack.load_optimizer_states(self.optimizer, [request.optimizer_state for request in requests])
        self.batches = [request.batches() for request in requests]
        self.losses: list[list[Tensor]] = [[] for _ in requests]
        self.failed: dict[int, Exception] = {}

    def run(self) -> list[Outcome]:
        """The outcome of each training."""
        for _ in range(self.requests[0].steps):
            # Only an augmentation may draw from the generators of numpy and random.
            torch_only = self.site.task.augment is None
            drawn = [
                self._attempt(number, next, batches, torch_only=torch_only)
                for number, batches in enumerate(self.batches)
            ]
            if len(self.failed) == len(self.requests):
                break
            self._step(drawn)
        if self.requests[0].optimizer_state is not None:  # or of none, because their keys are equal
            for request, state in zip(self.requests, self.stack.dump_optimizer_states(self.optimizer), strict=True):
                assert request.optimizer_state is not None
                request.optimizer_state.update(state)
        means = [
            self._attempt(number, mean_loss, losses, parameters, torch_only=True)
            for number, (losses, parameters) in enumerate(zip(self.losses, self.stack.parameters, strict=True))
        ]
        return [self.failed.get(number, mean) for number, mean in enumerate(means)]

    def _step(self, drawn: Sequence[Batch | None]) -> None:
        usable = next(batch for batch in drawn if batch is not None)
        self.stack.zero_gradients()
        with self.training.precision(self.site):
            # The row of a failed site has the batch of another site, and no loss.
            outputs = self.stack.outputs([(batch or usable)[0] for batch in drawn])
            losses = self._losses(outputs, drawn)
        total = [loss for loss in losses.values() if loss is not None]
        if total:
            torch.stack(total).sum().backward()
        for number, (request, parameters) in enumerate(zip(self.requests, self.stack.parameters, strict=True)):
            if request.correct is not None:
                self._attempt(number, request.correct, parameters)
            if self.training.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.training.clip)
            if (loss := losses.get(number)) is not None:
                self.losses[number].append(loss.detach())
        self.optimizer.step()

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
