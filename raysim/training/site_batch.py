"""Trains the networks of several sites in one batch: their weights are rows of stacked tensors, and a forward pass, a
backward pass and an optimiser step are one operation for all sites. For small networks and images this is faster,
because most of the time of a step is the overhead of launching many small operations.

The client functions of a group of sites run alternately, each in a greenlet: until it trains, or until its end. When
all of them wait for their training, those with equal networks and numbers of steps train together. Everything else in
a client function runs for one site at a time, with the random generators of that site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

from raysim.core.contracts import Batch, Site, Split
from raysim.core.seeding import get_generators, preserve_rng, set_generators
from raysim.training.optimizers import OptimizerState
from raysim.training.stacked_losses import is_close
from raysim.training.stacked_training import Outcome, StackedTraining

if TYPE_CHECKING:
    from raysim.training.local_training import GradientCorrection, LocalTraining

R = TypeVar("R")
_can_stack: dict[Any, bool] = {}  # by the signature of a network


class _Call:
    """A function in a greenlet, with its own states of the random generators."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.greenlet = greenlet(function)
        self.generators: Any = None

    @property
    def done(self) -> bool:
        return bool(self.greenlet.dead)

    @contextmanager
    def own_generators(self, torch_only: bool = False) -> Iterator[None]:
        """Use the generators of this call in the block; with `torch_only` only that of torch, which is much faster."""
        if self.generators is not None:
            set_generators(self.generators, torch_only)
        try:
            yield
        finally:
            if not self.done:
                self.generators = get_generators() if not torch_only else (torch.get_rng_state(), *self.generators[1:])

    def proceed(self, outcome: Any = None) -> Any:
        """The next request of the function, or its result. `outcome` is the answer to its last request."""
        with self.own_generators():
            if isinstance(outcome, Exception):
                return self.greenlet.throw(outcome)
            return self.greenlet.switch() if outcome is None else self.greenlet.switch(outcome)


class SiteCall(_Call):
    """The client function of one site, which asks for trainings: `FitRequest`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(function)
        self.greenlet.site_call = self  # how `fit` knows that it runs in a group


class FederationCall(_Call):
    """The round of a federation, which asks for the trainings of several sites: a list of `FitRequest`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(function)
        self.greenlet.federation_call = self


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
        return self.signature, self.steps, min(self.site.task.batch_size, len(self.split)), self.site.device

    @cached_property
    def optimizer_key(self) -> Any:
        """Equal for trainings that can share an optimiser."""
        states = (self.optimizer_state or {}).items()
        steps_done = tuple((name, state.item() if state.ndim == 0 else None) for name, state in sorted(states))
        return self.training, self.training.lr_at(self.site), self.optimizer_state is None, steps_done


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
        trained = _train([*requests.values()])
        outcomes = {number: trained[id(request)] for number, request in requests.items()}
    return [results[number] for number in range(len(calls))]


def advance_together(functions: Sequence[Callable[[], R]]) -> list[R | Exception]:
    """The results of `functions`, or their exceptions. Each is a round of a federation; they train in one batch."""
    calls = [FederationCall(function) for function in functions]
    results: dict[int, R | Exception] = {}
    outcomes: dict[int, Any] = dict.fromkeys(range(len(calls)))
    while outcomes:
        requests: dict[int, list[FitRequest]] = {}
        for number, outcome in outcomes.items():
            try:
                value = calls[number].proceed(outcome)
            except Exception as error:  # noqa: BLE001 - a federation may fail for any reason, and the others continue
                value = error
            if calls[number].done:
                results[number] = value
            else:
                requests[number] = value
        trained = _train([request for each in requests.values() for request in each])
        outcomes = dict.fromkeys(requests, trained)
    return [results[number] for number in range(len(calls))]


def runs_in_batch() -> bool:
    """Whether this federation advances together with other federations."""
    return hasattr(getcurrent(), "federation_call")


def _train(requests: Sequence[FitRequest]) -> dict[int, Outcome]:
    """The outcome of each training, by the id of its request; with those of the other federations if there are any."""
    if not runs_in_batch():
        return train_together(requests)
    outcomes: dict[int, Outcome] = getcurrent().parent.switch(requests)
    return outcomes


def train_together(requests: Sequence[FitRequest]) -> dict[int, Outcome]:
    """The outcome of each training, by the id of its request."""
    groups: dict[Any, dict[Any, list[FitRequest]]] = {}
    for request in requests:
        groups.setdefault(request.key, {}).setdefault(request.optimizer_key, []).append(request)
    outcomes: dict[int, Outcome] = {}
    for by_optimizer in groups.values():
        group = [request for each in by_optimizer.values() for request in each]
        if len(group) > 1 and can_stack(group[0], group[1]):
            found = StackedTraining(group).run()
        else:
            found = [request.attempt(request.training.fit_alone, request) for request in group]
        outcomes |= dict(zip(map(id, group), found, strict=True))
    return outcomes


def can_stack(first: FitRequest, second: FitRequest) -> bool:
    """Whether the stacked networks have the outputs and gradients of single ones; tried once for each signature.

    False for networks with random layers such as dropout, with several outputs, or with operations without a rule for
    `torch.func.vmap`.
    """
    if first.signature not in _can_stack:
        with preserve_rng():
            try:
                _can_stack[first.signature] = _agrees(first, second)
            except Exception:  # noqa: BLE001 - what vmap does not support raises different errors
                _can_stack[first.signature] = False
    return _can_stack[first.signature]


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
