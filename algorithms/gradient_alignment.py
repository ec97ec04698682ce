"""Gradient alignment (our reading): the server corrects the mean step towards a point where gradients agree.

Tian, Li, Wang, Wang, "Privacy-Preserving Constrained Domain Generalization via Gradient Alignment", IEEE TKDE 36(5),
2024, https://arxiv.org/abs/2105.08511. We know only the abstract: the server minimises an alignment loss between the
sites' gradients, motivated by the maximum mean discrepancy (MMD). Let g_k be the mean gradient of site k, p_k its
fraction of the examples, g = sum_k p_k g_k, and H_k its Hessian:

    L(w) = sum_k p_k ||g_k - g||^2 = 1/2 sum_ij p_i p_j ||g_i - g_j||^2      an MMD of sites, kernel <grad, grad>
    dL/dw = 2 sum_k p_k h_k,   h_k = H_k (g_k - g)                           a second call: g down, h_k up
    d = g + strength dL/dw                     the server descends F + strength L, F = sum_k p_k F_k the training loss

The correction strength dL/dw is clipped to `limit` ||g||. `mode="local"`: g_k is the displacement of a site's local
training by plain SGD, (w - w_k) / (lr steps). h_k is the difference of two local trainings on the same batches, from w
and from w + beta (g_k - g), over beta. `mode="gradient"`: g_k is the gradient over `epochs` passes or `steps` batches;
h_k by double backward or difference. `mode="server"`: one call; d moves from g by the fraction `shift` of the way to
the densest point of the g_k, found by mean shift with a Gaussian kernel. Strength 0 and shift 0 are FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from raysim import (
    UNCHANGED,
    ConfigError,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    Predictor,
    Reply,
    RunError,
    Site,
    Task,
    combine,
    mean,
    weights,
)
from raysim.training import (
    OptimizerState,
    dump_optimizer_state,
    from_vector,
    gram_matrix,
    load_optimizer_state,
    mean_cosine,
    mean_shift,
    model_norm,
    to_vector,
    translate,
    weighted_variance,
)

GROUP = "domain generalisation"

ROUNDING = 1e-5  # relative error of float32 sums, with a margin


@dataclass(frozen=True)
class ServerState:
    """The global model and the moments of the server's optimiser."""

    model: Model
    moments: OptimizerState = field(default_factory=dict)


@dataclass(frozen=True)
class ClientState:
    """The client state between the two calls of a round; `between_rounds` is the client state after the round."""

    start: Model
    gradient: Model
    between_rounds: Model | None


@dataclass(frozen=True, kw_only=True)
class GradientAlignment(LocalTraining):
    strength: Annotated[float, Ge(0), "lambda, weight of the alignment loss; unused in server mode"] = 10.0
    mode: Annotated[
        Literal["local", "gradient", "server"],
        "local: g_k from local training; gradient: g_k from gradients; server: one call, only the server aligns",
    ] = "local"
    product: Annotated[
        Literal["exact", "difference"], "h_k in gradient mode: by double backward, or by a finite difference"
    ] = "exact"
    beta: Annotated[float, Gt(0), "step of the finite difference, relative to the norm of the weights"] = 0.01
    limit: Annotated[
        float | None, Ge(1), "largest ratio of the norm of the correction to that of the mean step; null: no limit"
    ] = 2.0
    shift: Annotated[float, Ge(0), Le(1), "server mode: fraction of the way to the densest point"] = 1.0
    bandwidth: Annotated[float, Gt(0), "kernel width in server mode, relative to the median distance from the mean"] = (
        1.0
    )
    lr: Annotated[float, Gt(0), "learning rate of the local sgd"] = 0.05
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], "local optimiser: must be sgd in local mode"] = "sgd"
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of the local sgd: must be 0 in local mode"] = 0.0
    server_optimizer: Annotated[Literal["sgd", "adam"], "optimiser of the server"] = "sgd"
    server_lr: Annotated[float, Gt(0), "learning rate of the server; gradient mode uses only this one"] = 1.0
    server_momentum: Annotated[float, Ge(0), Lt(1), "momentum of the server's sgd"] = 0.0

    def __post_init__(self) -> None:
        if self.mode == "local" and self.strength and (self.optimizer != "sgd" or self.momentum):
            raise ConfigError(
                f"gradient_alignment: algorithm.optimizer={self.optimizer}, algorithm.momentum={self.momentum:g}: "
                "expected plain sgd in local mode, because only then is (w - w_k) / (lr steps) a mean gradient; set "
                "algorithm.optimizer=sgd algorithm.momentum=0, and an algorithm.lr for sgd, or algorithm.mode=gradient"
            )

    def init(self, task: Task) -> ServerState:
        return ServerState(self.make_update(task.network())[0])

    # at each site
    def first(self, site: Site[Any], model: Model) -> Reply[Model]:
        """The weights after local training; in gradient mode, the gradient."""
        net = self.load_global(site := between_rounds(site), model)
        start = weights(net)
        loss = self._gradient(net, site) if self.mode == "gradient" else self.fit(net, site)
        update, client_state = self.make_update(net)
        if self.strength and self.mode != "server":  # needed by the second call
            buffers = None if client_state is UNCHANGED else client_state
            client_state = ClientState(start, self._site_gradient(site, start, net), buffers)
        metrics = {"loss": loss, "scale": self._scale(site)}
        return Reply(update, weight=len(site.data.train), metrics=metrics, client_state=client_state)

    def second(self, site: Site[ClientState], average: Model) -> Reply[Model]:
        """h_k on the batches of the first call."""
        first = site.client_state
        assert first is not None
        v = first.gradient - average
        exact = self.mode == "gradient" and self.product == "exact"
        h = self._product(site, first.start, v) if exact else self._difference(site, first, v)
        return Reply(h, weight=len(site.data.train), client_state=first.between_rounds)

    def _scale(self, site: Site[Any]) -> float:
        """The factor that converts the payload to the gradient; in local mode -1 / (lr steps), for w_k - w."""
        steps = self.count_steps(site.data.train, site.task.batch_size)
        return 1.0 if self.mode == "gradient" else -1 / (self.lr_at(site) * steps)

    def _site_gradient(self, site: Site[Any], start: Model, net: nn.Module) -> Model:
        """g_k from the trained network; in gradient mode its parameters are the gradient."""
        end, scale = weights(net).parameters, self._scale(site)
        return end if self.mode == "gradient" else combine([end, start.parameters], [scale, -scale])

    def _gradient(self, net: nn.Module, site: Site[Any]) -> float:
        """The mean loss over the batches. Replaces the parameters of `net` by the mean gradient."""
        total = 0.0
        for fraction, loss in self._losses(net, site):
            (fraction * loss).backward()
            total += fraction * loss.item()
        for parameter in net.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if not math.isfinite(total) or not all(p.isfinite().all() for p in net.parameters()):
            raise RunError("the gradient is not finite; lower the server's learning rate (algorithm.server_lr)")
        return total

    def _product(self, site: Site[ClientState], start: Model, v: Model) -> Model:
        """H_k v by double backward."""
        net = site.load(start)
        site.rewind()
        result = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
        trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        directions = [torch.from_numpy(v[name].copy()).to(site.device) for name in trained]
        for fraction, loss in self._losses(net, site):
            first = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
            along = torch.stack([(g * d).sum() for g, d in zip(first, directions, strict=True)]).sum()
            second = torch.autograd.grad(along, list(trained.values()), materialize_grads=True)
            for name, h in zip(trained, second, strict=True):
                result[name] += fraction * h
        return Model.of({name: tensor.cpu().numpy() for name, tensor in result.items()})

    def _difference(self, site: Site[ClientState], first: ClientState, v: Model) -> Model:
        """H_k v by a finite difference: (g_k at `start + step v` - g_k at `start`) / step."""
        step = self.beta * (model_norm(first.start.parameters) or 1.0) / (model_norm(v) or 1.0)
        net = site.load(translate(first.start, v, step))
        start = weights(net)
        site.rewind()
        self._gradient(net, site) if self.mode == "gradient" else self.fit(net, site)
        return combine([self._site_gradient(site, start, net), first.gradient], [1 / step, -1 / step])

    def _losses(self, net: nn.Module, site: Site[Any]) -> Iterator[tuple[float, Tensor]]:
        """Yields each batch's fraction of all examples, and its loss."""
        split, size = site.data.train, min(site.task.batch_size, max(len(site.data.train), 1))
        steps = self.count_steps(split, site.task.batch_size)
        passes, rest = divmod(steps, math.ceil(len(split) / size))
        count = passes * len(split) + min(rest * size, len(split))
        for inputs, labels in self.training_batches(site):
            with self.precision(site):
                loss = site.task.loss(net(inputs), labels)
            yield len(inputs) / count, loss

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        # One site alone cannot be aligned.
        aligned = self if len(fleet.sites) > 1 else replace(self, strength=0.0, shift=0.0)
        model, replies = state.model, fleet.map(aligned.first, state.model)
        sites, average, origin = list(replies), mean(replies), None if self.mode == "gradient" else model.parameters
        share = np.array([replies[site].weight for site in sites]) / sum(reply.weight for reply in replies.values())
        scale = np.array([replies[site].metrics["scale"] for site in sites])  # from payloads to gradients
        payloads = [replies[site].payload.parameters for site in sites]
        products = gram_matrix(payloads, origin) * np.outer(scale, scale)
        mean_step = average.parameters if origin is None else origin - average.parameters
        correction, spread = None, weighted_variance(products, share)
        # If not, the gradients are equal up to rounding errors.
        differ = spread > ROUNDING**2 * float(share @ products @ share)
        if self.mode == "server" and aligned.shift and differ:
            towards = share - mean_shift(products, share, self.bandwidth)
            correction = combine(payloads, (self.shift * towards).tolist())
        elif self.mode != "server" and aligned.strength and differ:
            factors = share * scale
            mean_gradient = (
                combine(payloads, factors)
                if origin is None
                else combine([origin, *payloads], [-factors.sum(), *factors])
            )
            second = fleet.at(sites).map(self.second, mean_gradient)
            if len(second) == len(sites):  # without a site, the products do not cancel where the gradients agree
                step = float(share @ np.abs(1 / scale))  # from gradients to the mean step; 1 in gradient mode
                correction = self._clipped(mean(second), 2 * self.strength * step, model_norm(mean_step))
        metrics = {"alignment_loss": spread, "gradient_cosine": mean_cosine(products), "correction_ratio": 0.0}
        if correction is not None and model_norm(mean_step):
            metrics["correction_ratio"] = model_norm(correction) / model_norm(mean_step)
        if self._is_mean:
            return ServerState(average if correction is None else translate(average, correction, -1.0)), metrics
        direction = mean_step if correction is None else translate(mean_step, correction, 1.0)
        return self._descend(average | model.parameters, direction, state.moments), metrics

    def _clipped(self, product: Model, factor: float, mean_step: float) -> Model:
        """`factor` times `product`, not longer than `limit` times the norm `mean_step`."""
        length = factor * model_norm(product)
        if self.limit is not None and length > self.limit * mean_step:
            factor *= self.limit * mean_step / length
        return product * factor

    def _descend(self, model: Model, direction: Model, moments: OptimizerState) -> ServerState:
        """The state after one step of the server's optimiser with `direction` as the gradient."""
        parameter = nn.Parameter(torch.from_numpy(to_vector(model.parameters)))
        parameter.grad = torch.from_numpy(to_vector(direction))
        sgd: Any = partial(torch.optim.SGD, momentum=self.server_momentum)
        optimizer = (sgd if self.server_optimizer == "sgd" else torch.optim.Adam)([parameter], self.server_lr)
        load_optimizer_state(optimizer, moments)
        optimizer.step()
        moved = from_vector(parameter.detach().numpy(), model.parameters)
        return ServerState(model | moved, dump_optimizer_state(optimizer))

    @property
    def _is_mean(self) -> bool:
        """Whether the server's step results in the mean of the sites' weights, which is then used directly."""
        server = (self.server_optimizer, self.server_lr, self.server_momentum)
        return self.mode != "gradient" and server == ("sgd", 1, 0)

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        return self.predict_module(between_rounds(site), state.model)


def between_rounds(site: Site[Any]) -> Site[Any]:
    """The site with its client state between rounds, even if the last round was aborted after its first call."""
    state = site.client_state
    return replace(site, client_state=state.between_rounds) if isinstance(state, ClientState) else site
