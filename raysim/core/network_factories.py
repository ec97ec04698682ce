"""Factories of networks with given initial weights, and of networks of which only a part is trained and sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import batch_norm

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.model import BatchNorm, Model, load, weights

NetworkFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class InitialWeights:
    """The tensors of a file that match a network, and the differences of the others.

    loaded: the matching tensors. missing: names that are not in the file. unexpected: names that are not in the
    network. mismatched: the name with the shapes, or the dtypes, in the file and in the network.
    """

    source: str
    sha256: str
    loaded: Model
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @property
    def differences(self) -> str:
        """The tensors that do not match, in one line; empty if all match."""
        parts = {
            "not in the file": self.missing,
            "of another shape": self.mismatched,
            "not in the network": self.unexpected,
        }
        return "; ".join(f"{kind}: {join_names(names)}" for kind, names in parts.items() if names)

    @property
    def report(self) -> str:
        """One line for the start of a run."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        found = f"initial weights: {len(self.loaded)} of {pluralize(total, 'tensor')} of the network from {self.source}"
        return f"{found}; {self.differences}" if self.differences else found

    def to_mapping(self) -> dict[str, Any]:
        """The entry of env.json."""
        names = {"missing": self.missing, "mismatched": self.mismatched, "unexpected": self.unexpected}
        lists = {"loaded": sorted(self.loaded), **{kind: list(found) for kind, found in names.items()}}
        return {"source": self.source, "sha256": self.sha256, **lists}


@dataclass(frozen=True, eq=False)
class PretrainedNetwork:
    """Creates the network of `factory` and loads `initial` into it."""

    factory: NetworkFactory
    initial: InitialWeights

    def __call__(self) -> nn.Module:
        net = self.factory()
        load(net, weights(net) | self.initial.loaded)
        return net


@dataclass(frozen=True)
class PartlyTrainedNetwork:
    """Creates the network of `factory`. Only the tensors whose names match `patterns` are trained.

    The others are not in `state_dict()`, so they are neither trained nor sent; see `freeze`.
    """

    factory: NetworkFactory
    patterns: tuple[str, ...]

    def __call__(self) -> nn.Module:
        return freeze(self.factory(), self.patterns)


def base_factory(factory: NetworkFactory) -> NetworkFactory:
    """The factory of the same network without initial weights and with all its tensors."""
    while isinstance(factory, PretrainedNetwork | PartlyTrainedNetwork):
        factory = factory.factory
    return factory


def initial_weights(task: Task) -> InitialWeights | None:
    """The weights of a file from which the network of `task` starts; None if it starts from random weights."""
    factory: Any = task.network
    while hasattr(factory, "factory") and not isinstance(factory, PretrainedNetwork):
        factory = factory.factory
    return factory.initial if isinstance(factory, PretrainedNetwork) else None


def trained_patterns(task: Task) -> tuple[str, ...] | None:
    """The names, with wildcards, of the tensors of the network that are trained; None if all are."""
    return task.network.patterns if isinstance(task.network, PartlyTrainedNetwork) else None


def train_only(task: Task, patterns: Sequence[str] | None) -> Task:
    """The task with a network of which only the tensors that match `patterns` (as in fnmatch) are trained and sent.

    None: the task itself. Raises ConfigError for a pattern that matches nothing, and if no parameter is trained.
    """
    task = with_all_tensors(task)
    if patterns is None:
        return task
    net = task.start(0)
    names = list(net.state_dict())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"algorithm.trainable: '{pattern}' matches no parameter; write * for any text, as in "
                f"{names[-1].partition('.')[0]}.*; parameters of the network: {', '.join(names)}"
            )
    if not list(freeze(net, patterns).parameters()):
        raise ConfigError(f"algorithm.trainable={list(patterns)} matches buffers only; add the name of a parameter")
    return replace(task, network=PartlyTrainedNetwork(task.network, tuple(patterns)))


def with_all_tensors(task: Task) -> Task:
    """The task with the complete network; the tensors that are not trained have their initial values."""
    if isinstance(task.network, PartlyTrainedNetwork):
        return replace(task, network=task.network.factory)
    return task


def freeze(net: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """`net` with a `state_dict()` of the tensors whose names match `patterns`; all others become constants.

    A frozen parameter becomes a buffer that is not in the state. If no tensor of a layer is trained, its buffers are
    constants too; a BatchNorm layer then always normalises with its running statistics.
    """
    tensors = net.state_dict(keep_vars=True).items()
    trained = {id(tensor) for name, tensor in tensors if any(fnmatchcase(name, pattern) for pattern in patterns)}
    constant = {id(layer) for layer in net.modules() if _freeze_layer(layer, trained)}
    norms = (layer for layer in net.modules() if isinstance(layer, BatchNorm) and id(layer) in constant)
    layers = {id(layer): FrozenBatchNorm(layer) for layer in norms if layer.running_mean is not None}
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
    return layers.get(id(net), net)


def _freeze_layer(layer: nn.Module, trained: set[int]) -> bool:
    """Freeze the tensors of `layer` itself whose ids are not in `trained`. Returns whether none of them is trained."""
    parameters = dict(layer.named_parameters(recurse=False))
    buffers = dict(layer.named_buffers(recurse=False))
    is_constant = not any(id(tensor) in trained for tensor in (*parameters.values(), *buffers.values()))
    frozen = {name: tensor for name, tensor in parameters.items() if id(tensor) not in trained}
    for name, tensor in (frozen | (buffers if is_constant else {})).items():
        delattr(layer, name)
        layer.register_buffer(name, tensor.detach(), persistent=False)
    return is_constant


class FrozenBatchNorm(nn.Module):
    """A BatchNorm layer with constant statistics, scales and shifts, in training mode too. It has no state."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: BatchNorm) -> None:
        super().__init__()
        self.eps = layer.eps
        absent = {"weight": None, "bias": None}  # for a layer without scales and shifts
        for name, tensor in (absent | dict(layer.named_buffers(recurse=False))).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
