"""Local training for all algorithms: optimiser, schedule, epochs, clipping, precision, buffers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from torch import Tensor, nn

from raysim.core.contracts import UNCHANGED, Batch, Site, Split
from raysim.core.model import BatchNorm, Model, load, weights
from raysim.training.batching import batches
from raysim.training.optimizers import (
    LocalOptimizer,
    OptimizerState,
    dump_optimizer_state,
    fuse_parameters,
    load_optimizer_state,
    mean_loss,
)
from raysim.training.site_batch import FitRequest
from raysim.training.test_time_adaptation import (
    ADAPTATIONS,
    LR,
    PASSES,
    OutsideAdaptation,
    affine_parameters,
    use_batch_statistics,
)

GradientCorrection = Callable[[list[nn.Parameter]], None]  # changes the gradients in place, before clipping
SMALL_RATE = 0.1  # fraction of the first learning rate below which personal models are no longer renewed


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """Fields and methods of training at a site; a base class of algorithms.

    `can_compile`: whether the method trains with `fit`, which compiles the network.
    """

    can_compile = True

    lr: Annotated[float, Gt(0), "learning rate of the local optimiser"] = 1e-3
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], "local optimiser, created again in every round"] = "adam"
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of sgd; Adam's betas are 0.9 and 0.999"] = 0.9
    weight_decay: Annotated[float, Ge(0), "weight decay of the local optimiser"] = 0.0
    epochs: Annotated[int, Gt(0), "passes over the site's training data per round"] = 1
    steps: Annotated[int | None, Gt(0), "optimiser steps per round, instead of epochs"] = None
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "poly"],
        "schedule of the learning rate over the configured rounds; poly: (1 - round/rounds)^0.9",
    ] = "constant"
    lr_floor: Annotated[float, Ge(0), Le(1), "lowest learning rate of the schedule, as a fraction of lr"] = 0.0
    clip: Annotated[float | None, Gt(0), "gradients are clipped to this L2 norm; default: no clipping"] = None
    amp: Annotated[bool | None, "bfloat16 autocast; default: off"] = None
    compile: Annotated[
        bool, "train networks that torch.compile has compiled, which takes up to minutes; needs a C++ compiler"
    ] = False
    buffers: Annotated[
        Literal["average", "local", "reset"],
        "running statistics. average: averaged by the server; local: kept at each site; reset: reset in every round",
    ] = "average"
    trainable: Annotated[
        tuple[str, ...] | None,
        Len(1),
        "names of the parameters that are trained and sent, such as [model.2.*]; * is any text. The others keep their "
        "initial values and are not sent, and their BatchNorm layers stay in evaluation mode; default: all",
    ] = None
    outside: Annotated[OutsideAdaptation, "how the global model is adapted to outside sites"] = field(
        default_factory=OutsideAdaptation
    )

    def load_global(self, site: Site[Any], model: Model) -> nn.Module:
        """A network with the global model, and with this site's buffers according to `buffers`.

        Raises RunError before training if Tent or SAR cannot adapt the network.
        """
        net = self.load_site_buffers(site.load(), site, model)
        if self.outside.name in ADAPTATIONS and site.task.outside:
            affine_parameters(net)
        return net

    def load_site_buffers(self, net: nn.Module, site: Site[Any], model: Model) -> nn.Module:
        """`net` with the weights of `model`, and with this site's buffers according to `buffers`."""
        load(net, self._with_site_buffers(site, model))
        if self.buffers == "reset":
            for layer in batch_norms(net):
                layer.reset_running_stats()
        return net

    def make_update(self, net: nn.Module) -> tuple[Model, Any]:
        """The weights of `net` to send, and the new client state: the buffers with `buffers=local`, else UNCHANGED."""
        model = weights(net)
        if self.buffers == "local":
            return model.parameters, model.buffers
        return model, UNCHANGED

    def predict_module(self, site: Site[Any], model: Model) -> nn.Module:
        """The global model in evaluation mode, with the site's local buffers if `buffers` is local.

        At an outside site the model is adapted as set by `outside`.
        """
        net = site.predict_module(self._with_site_buffers(site, model))
        if self.outside.name == "global" or site.name not in site.task.outside:
            return net
        use_batch_statistics(net)
        images = (site.data.test if len(site.data.test) else site.data.val).inputs
        adapt = ADAPTATIONS.get(self.outside.name)
        if adapt is not None and len(images):
            key = (site.seed, self.outside.name, site.name)
            lr, passes = self.outside.lr or LR, self.outside.passes or PASSES
            adapt(net, images, lr=lr, passes=passes, batch=site.task.batch_size, key=key)
        return net

    def _with_site_buffers(self, site: Site[Any], model: Model) -> Model:
        """`model` with the local buffers of the client state, which is a model or has an attribute `buffers`."""
        return model | site.client_state.buffers if self.buffers == "local" and site.client_state is not None else model

    def fit(
        self,
        net: nn.Module,
        site: Site[Any],
        *,
        split: Split | None = None,
        correct: GradientCorrection | None = None,
        epochs: int | None = None,
        optimizer_state: OptimizerState | None = None,
    ) -> float:
        """Mean loss over the steps of one round. Trains `net` in place on `split` (default: the training data).

        `epochs` overrides the fields `epochs` and `steps`. `optimizer_state` is as in `optimize`.
        """
        split = site.data.train if split is None else split
        return FitRequest(self, net, site, split, epochs, correct, optimizer_state).run()

    def fit_alone(self, request: FitRequest) -> float:
        """As `fit`, without other sites: see `raysim.training.site_batch`."""
        losses = self._supervised(request.net, request.site, request.batches())
        return self.optimize(
            request.net, request.site, losses, correct=request.correct, optimizer_state=request.optimizer_state
        )

    def _supervised(self, net: nn.Module, site: Site[Any], batches: Iterable[Batch]) -> Iterator[Tensor]:
        predict = torch.compile(net) if self.compile else net
        for inputs, labels in batches:
            with self.precision(site):
                loss = site.task.loss(predict(inputs), labels)
            yield loss

    def optimize(
        self,
        net: nn.Module,
        site: Site[Any],
        losses: Iterable[Tensor],
        *,
        correct: GradientCorrection | None = None,
        optimizer_state: OptimizerState | None = None,
    ) -> float:
        """Mean of `losses`. Takes one optimiser step per loss.

        If `losses` is a generator, the code after its `yield` runs after the step. `net` is set to training mode before
        the first loss is requested, unless it is in training mode already: a caller may freeze layers with `.eval()`.
        A given `optimizer_state` is loaded before the first step and updated after the last. Raises RunError after the
        last step if a loss was not finite; the message names the step.
        """
        if site.device.type == "cuda":
            net.to(memory_format=channels_last(site.data.train.inputs.ndim))  # type: ignore[call-overload]  # stub
        if not net.training:
            net.train()
        parameters = [p for p in net.parameters() if p.requires_grad]
        fused, gradients = fuse_parameters(parameters)
        optimizer = self.make_optimizer(fused, site)
        load_optimizer_state(optimizer, optimizer_state)
        detached = []
        for loss in losses:
            for gradient in gradients:
                gradient.zero_()
            loss.backward()
            if correct is not None:
                correct(parameters)
            if self.clip is not None:
                nn.utils.clip_grad_norm_(fused, self.clip)
            optimizer.step()
            detached.append(loss.detach())
        if optimizer_state is not None:
            optimizer_state.update(dump_optimizer_state(optimizer))
        return mean_loss(detached, fused)

    def precision(self, site: Site[Any]) -> AbstractContextManager[Any]:
        """The autocast context if `amp` is set, else a context without effect."""
        return torch.autocast(site.device.type, torch.bfloat16) if self.amp else nullcontext()

    def make_optimizer(self, parameters: list[nn.Parameter], site: Site[Any]) -> LocalOptimizer:
        """The optimiser of `parameters` in the site's current round."""
        lr, momentum, decay = self.lr_at(site), self.momentum, self.weight_decay
        return LocalOptimizer(parameters, self.optimizer, lr=lr, momentum=momentum, weight_decay=decay)

    def lr_at(self, site: Site[Any]) -> float:
        """The learning rate of the site's current round."""
        return self.lr * self._lr_factor(site.round, site.rounds)

    def _lr_factor(self, round: int, rounds: int) -> float:
        return self.lr_floor + (1 - self.lr_floor) * lr_factor(self.schedule, round, rounds)

    def warn_of_small_rate(self, rounds: int) -> None:
        """Warns if the learning rate of the last round is below a tenth of the first.

        For algorithms that pull personal models to the global one in every round. Only training renews the difference
        of a personal model, so with a rate near 0 the personal models become equal to the global one.
        """
        last = self._lr_factor(rounds - 1, rounds)
        if last < SMALL_RATE:
            warnings.warn(
                f"algorithm.schedule={self.schedule}: the learning rate of the last round is {last:.2g} of the first, "
                "so personal models approach the global one; set algorithm.lr_floor=0.1 or algorithm.schedule=constant",
                stacklevel=2,
            )

    def count_steps(self, split: Sized, batch_size: int, epochs: int | None = None) -> int:
        """The number of optimiser steps per round of training on `split`."""
        if self.steps is not None and epochs is None:
            return self.steps
        return (epochs or self.epochs) * math.ceil(len(split) / min(batch_size, max(len(split), 1)))

    def training_batches(
        self, site: Site[Any], *, split: Split | None = None, epochs: int | None = None
    ) -> Iterator[Batch]:
        """The batches of one round of training on `split` (default: the training data), shuffled and augmented.

        `epochs` overrides the fields `epochs` and `steps`.
        """
        split = site.data.train if split is None else split
        steps = self.count_steps(split, site.task.batch_size, epochs)
        batch = min(site.task.batch_size, max(len(split), 1))
        return batches(split, batch, steps, site.device, site.task.augment, site.task.sampling)


def copy_trained(net: nn.Module) -> list[Tensor]:
    """Copies of the parameters of `net` that are trained, such as the `w` of `proximal_term`."""
    return [p.detach().clone() for p in net.parameters() if p.requires_grad]


def proximal_term(w: list[Tensor], weight: float) -> GradientCorrection:
    """A correction that adds the gradient of weight / 2 ||v - w||^2, weight (v - w), to those of the parameters v."""

    @torch.no_grad()
    def correct(parameters: list[nn.Parameter]) -> None:
        for parameter, anchor in zip(parameters, w, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=weight)

    return correct


def add_to_gradients(change: Model, net: nn.Module) -> GradientCorrection:
    """A correction that adds `change`, which has the parameters of `net`, to their gradients."""
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    changes = [torch.from_numpy(change[name].copy()).to(p.device) for name, p in trained]

    @torch.no_grad()
    def correct(parameters: list[nn.Parameter]) -> None:
        for parameter, added in zip(parameters, changes, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(added)

    return correct


def lr_factor(schedule: str, round: int, rounds: int) -> float:
    """The learning rate of round `round` (zero-based) as a fraction of that of the first round."""
    left = 1 - round / rounds
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
        "poly": math.pow(left, 0.9),
    }[schedule]


def batch_norms(net: nn.Module) -> Iterator[BatchNorm]:
    """The batch normalisation layers of `net`."""
    return (layer for layer in net.modules() if isinstance(layer, BatchNorm))


def channels_last(ndim: int) -> torch.memory_format:
    """The memory format in which convolutions over batches with `ndim` axes run fastest on a GPU."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(ndim, torch.contiguous_format)
