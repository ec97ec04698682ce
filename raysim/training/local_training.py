"""Local training, shared by all algorithms: optimiser, schedule, epochs, clipping, precision, buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysim.core.contracts import UNCHANGED, Array, Batch, Site, Split
from raysim.core.errors import RunError
from raysim.core.model import Model, load, weights
from raysim.training.batching import batches
from raysim.training.test_time_adaptation import affine, tent, use_batch_statistics

Correction = Callable[[list[nn.Parameter]], None]  # changes the gradients in place, before clipping
OptimizerState = dict[str, Array]  # of an optimiser, as it keeps them between two calls


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a site trains. Algorithms inherit these fields, so that each is written and documented once."""

    lr: Annotated[float, Gt(0), "learning rate of the local optimiser"] = 1e-3
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], "local optimiser, made anew in every round"] = "adam"
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of sgd; Adam's betas are 0.9 and 0.999"] = 0.9
    weight_decay: Annotated[float, Ge(0), "weight decay of the local optimiser"] = 0.0
    epochs: Annotated[int, Gt(0), "passes over the site's training data in a round"] = 1
    steps: Annotated[int | None, Gt(0), "optimiser steps in a round, instead of epochs"] = None
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "poly"],
        "course of the learning rate over the declared rounds; poly falls as (1 - round/rounds)^0.9",
    ] = "constant"
    clip: Annotated[float | None, Gt(0), "largest L2 norm of a step's gradient"] = None
    amp: Annotated[bool | None, "bfloat16 autocast; off where not given"] = None
    buffers: Annotated[
        Literal["average", "local", "reset"],
        "running statistics: averaged by the server, kept at each site, or started afresh in every round",
    ] = "average"
    outside: Annotated[
        Literal["global", "batch_stats", "tent"],
        "what outside sites get: the global model as it is, with the statistics of each batch, or adapted by Tent",
    ] = "global"
    tent_lr: Annotated[float, Gt(0), "learning rate of Tent's Adam"] = 1e-3
    tent_passes: Annotated[int, Gt(0), "Tent's passes over an outside site's test images, without their labels"] = 1

    def load_global(self, site: Site[Any], model: Model) -> nn.Module:
        """The global model, live, with the buffers that the policy gives to this site."""
        net = self.load_site_buffers(site.load(), site, model)
        if self.outside == "tent" and site.task.outside:
            affine(net)  # what cannot be adapted is refused before it is trained
        return net

    def load_site_buffers(self, net: nn.Module, site: Site[Any], model: Model) -> nn.Module:
        """`net` with the weights of `model` and the buffers that the policy gives to this site."""
        load(net, self._with_own_buffers(site, model))
        if self.buffers == "reset":
            for layer in normalisations(net):
                layer.reset_running_stats()
        return net

    def make_update(self, net: nn.Module) -> tuple[Model, Any]:
        """What of `net` travels, and what the site keeps as its memory."""
        everything = weights(net)
        if self.buffers == "local":
            return everything.parameters, everything.buffers
        return everything, UNCHANGED

    def predict_module(self, site: Site[Any], model: Model) -> nn.Module:
        """The global model for predictions at `site`: with the site's own buffers where it keeps them.

        At an outside site it is adapted as `outside` says.
        """
        net = site.predict_module(self._with_own_buffers(site, model))
        if self.outside == "global" or site.name not in site.task.outside:
            return net
        use_batch_statistics(net)
        images = (site.data.test if len(site.data.test) else site.data.val).inputs
        if self.outside == "tent" and len(images):
            key = (site.seed, "tent", site.name)
            tent(net, images, lr=self.tent_lr, passes=self.tent_passes, batch=site.task.batch_size, key=key)
        return net

    def _with_own_buffers(self, site: Site[Any], model: Model) -> Model:
        """`model` with the buffers among what the site keeps: every memory answers `.buffers`, a bare model too."""
        return model | site.client_state.buffers if self.buffers == "local" and site.client_state is not None else model

    def fit(
        self,
        net: nn.Module,
        site: Site[Any],
        *,
        split: Split | None = None,
        correct: Correction | None = None,
        epochs: int | None = None,
        optimizer_state: OptimizerState | None = None,
    ) -> float:
        """Mean loss over the steps of one round of training `net` in place on `split` (the training data).

        `epochs` stands in for the field, and for `steps`. `optimizer_state` as in `optimize`.
        """
        batches = self._batches(site, site.data.train if split is None else split, epochs)
        losses = self._supervised(net, site, batches)
        return self.optimize(net, site, losses, correct=correct, optimizer_state=optimizer_state)

    def _supervised(self, net: nn.Module, site: Site[Any], batches: Iterable[Batch]) -> Iterator[Tensor]:
        for inputs, labels in batches:
            with self.precision(site):
                loss = site.task.loss(net(inputs), labels)
            yield loss

    def optimize(
        self,
        net: nn.Module,
        site: Site[Any],
        losses: Iterable[Tensor],
        *,
        correct: Correction | None = None,
        optimizer_state: OptimizerState | None = None,
    ) -> float:
        """Mean of `losses`, after a step down each of them; what a generator does behind its `yield` follows the step.

        `net` is put in training mode if it is not; layers of one in training mode may be frozen by `.eval()`. The first
        loss is asked for when that is done. `optimizer_state` are the optimiser's: taken up where there are any, and left there
        after the last step. Raises RunError, naming the step, as soon as the round is over if a loss was not finite.
        """
        if site.device.type == "cuda":
            net.to(memory_format=channels_last(site.data.train.inputs.ndim))  # type: ignore[call-overload]  # stub
        if not net.training:
            net.train()
        parameters = [p for p in net.parameters() if p.requires_grad]
        joined, gradients = fuse_parameters(parameters)
        optimizer = self._optimizer(joined, site)
        load_optimizer_state(optimizer, optimizer_state)
        seen = []
        for loss in losses:
            for gradient in gradients:
                gradient.zero_()
            loss.backward()
            if correct is not None:
                correct(parameters)
            if self.clip is not None:
                nn.utils.clip_grad_norm_(joined, self.clip)
            optimizer.step()
            seen.append(loss.detach())
        if optimizer_state is not None:
            optimizer_state.update(dump_optimizer_state(optimizer))
        return _mean_loss(seen, joined)

    def precision(self, site: Site[Any]) -> AbstractContextManager[Any]:
        """Autocast where `amp` asks for it."""
        return torch.autocast(site.device.type, torch.bfloat16) if self.amp else nullcontext()

    def _optimizer(self, parameters: list[nn.Parameter], site: Site[Any]) -> torch.optim.Optimizer:
        lr = self.lr_at(site)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr, self.momentum, weight_decay=self.weight_decay, fused=True)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr, weight_decay=self.weight_decay, fused=True)

    def lr_at(self, site: Site[Any]) -> float:
        """The learning rate of this round."""
        return self.lr * lr_factor(self.schedule, site.round, site.rounds)

    def count_steps(self, split: Sized, batch_size: int, epochs: int | None = None) -> int:
        """How many optimiser steps a round of training on `split` takes."""
        if self.steps is not None and epochs is None:
            return self.steps
        return (epochs or self.epochs) * math.ceil(len(split) / min(batch_size, max(len(split), 1)))

    def _batches(self, site: Site[Any], split: Split, epochs: int | None) -> Iterator[Batch]:
        batch = min(site.task.batch_size, max(len(split), 1))
        steps = self.count_steps(split, site.task.batch_size, epochs)
        return batches(split, batch, steps, site.device, site.task.augment)


def pull_to(w: list[Tensor], weight: float) -> Correction:
    """Adds `weight (v - w)` to the gradients of the parameters v: those of weight / 2 ||v - w||^2."""

    @torch.no_grad()
    def correct(parameters: list[nn.Parameter]) -> None:
        for parameter, towards in zip(parameters, w, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - towards, alpha=weight)

    return correct


def load_optimizer_state(optimizer: torch.optim.Optimizer, optimizer_state: Mapping[str, Array] | None) -> None:
    """Go on from `optimizer_state`, as `dump_optimizer_state` left them."""
    if not optimizer_state:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in optimizer_state.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def dump_optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """What `optimizer` knows beside its parameters."""
    states = optimizer.state_dict()["state"].items()
    found = {f"{index}/{name}": tensor for index, state in states for name, tensor in state.items()}
    return {name: tensor.cpu().numpy().copy() for name, tensor in found.items() if tensor is not None}


def fuse_parameters(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[Tensor]]:
    """One long parameter for each dtype, and its gradient; the `parameters` and their gradients become views of it.

    A step of the optimiser is then one operation, not one for each layer: for a small network it takes as long to
    walk through the layers as to train them.
    """
    joined, gradients = [], []
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        group = [p for p in parameters if p.dtype == dtype]
        values = torch.empty(sum(p.numel() for p in group), dtype=dtype, device=group[0].device)
        gradient, start = torch.zeros_like(values), 0
        for p in group:
            view = p.size(), p.stride(), start  # strides as they are: channels may come last
            p.data, p.grad = values.as_strided(*view).copy_(p.data), gradient.as_strided(*view)
            start += p.numel()
        joined.append(nn.Parameter(values))
        joined[-1].grad = gradient
        gradients.append(gradient)
    return joined, gradients


def lr_factor(schedule: str, round: int, rounds: int) -> float:
    """The learning rate of round `round` (from 0) as a part of the first one's."""
    left = 1 - round / rounds
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
        "poly": math.pow(left, 0.9),
    }[schedule]


def normalisations(net: nn.Module) -> Iterator[_BatchNorm]:
    """The layers of `net` that keep running statistics."""
    return (layer for layer in net.modules() if isinstance(layer, _BatchNorm))


def channels_last(ndim: int) -> torch.memory_format:
    """The memory format in which convolutions over batches of `ndim` axes run fastest on a GPU."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(ndim, torch.contiguous_format)


def _mean_loss(losses: list[Tensor], parameters: list[nn.Parameter]) -> float:
    # One look after the last step: a look in each step would make the GPU wait for the CPU.
    size = nn.utils.get_total_norm([p.detach() for p in parameters])
    *values, size = torch.stack([*(loss.float() for loss in losses), size.float()]).cpu()
    step = next((i for i, value in enumerate(values) if not value.isfinite()), None)
    if step is not None or not size.isfinite():
        what = f"the loss is {values[step].item()}" if step is not None else "the weights are not finite"
        raise RunError(
            f"{what} at step {len(values) if step is None else step + 1} of {len(values)}; lower the learning rate "
            "(algorithm.lr), clip the gradient (algorithm.clip=1), or look at the site's data"
        )
    mean: float = torch.stack(values).double().mean().item()
    return mean
