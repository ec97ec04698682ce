"""Gradient alignment (our reading): the server turns the sites' mean step towards where their gradients agree.

After Tian, Li, Wang, Wang, "Privacy-Preserving Constrained Domain Generalization via Gradient Alignment", IEEE TKDE
36(5), 2024, https://arxiv.org/abs/2105.08511, of which the abstract is what we know: an alignment loss between the
sites' gradients, explained by the maximum mean discrepancy, is descended at the server. With g_k the mean gradient of
site k, p_k its part of the examples, g = sum_k p_k g_k and H_k its Hessian:

    L(w) = sum_k p_k ||g_k - g||^2 = 1/2 sum_ij p_i p_j ||g_i - g_j||^2      an MMD of sites, kernel <grad, grad>
    dL/dw = 2 sum_k p_k h_k,   h_k = H_k (g_k - g)                           one more exchange: g down, h_k up
    d = g + weight ||g|| / ||sum_k p_k h_k|| sum_k p_k h_k                   what the server descends

`mode="local"`: g_k is the displacement of a site's local training, (w - w_k) / (lr steps), and h_k the difference
of two local runs on the same batches, from w and from w + beta (g_k - g), over beta. Weight 0 is FedAvg.
`mode="gradient"`: g_k is the gradient over `epochs` passes or `steps` batches; h_k by double backward or difference.
`mode="server"`: one exchange: d moves from g towards the densest of the g_k, by mean shift with a Gaussian kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean, weights
from raysim.core.errors import RunError
from raysim.training.batching import batches
from raysim.training.local_training import OptimizerState, dump_optimizer_state, load_optimizer_state
from raysim.training.model_geometry import cosine, from_vector, gram, mean_shift, norm, translate, variance, vector

ROUNDING = 1e-5  # of float32 sums, with room


@dataclass(frozen=True)
class ServerState:
    """The global model, and the moments of the server's optimiser."""

    model: Model
    moments: OptimizerState = field(default_factory=dict)


@dataclass(frozen=True)
class ClientState:
    """What a site keeps between the two calls of a round; `kept` is what it keeps between rounds."""

    start: Model
    gradient: Model
    kept: Model | None


@dataclass(frozen=True, kw_only=True)
class GradientAlignment(LocalTraining):
    weight: Annotated[float, Ge(0), "norm of the correction over that of the mean step; 0 is no alignment"] = 0.1
    mode: Annotated[Literal["local", "gradient", "server"], "local runs, gradients, or the server alone"] = "local"
    product: Annotated[Literal["exact", "difference"], "h_k of gradient mode: double backward or not"] = "exact"
    beta: Annotated[float, Gt(0), "finite step over the norm of the weights"] = 0.01
    limit: Annotated[float | None, Gt(0), "largest norm of a site's product over that of its gradient"] = 1.0
    bandwidth: Annotated[float, Gt(0), "of server mode: kernel width over the median distance from the mean"] = 1.0
    server_optimizer: Annotated[Literal["sgd", "adam"], "optimiser of the server"] = "sgd"
    server_lr: Annotated[float, Gt(0), "its learning rate; in gradient mode the only one"] = 1.0
    server_momentum: Annotated[float, Ge(0), Lt(1), "momentum of its sgd"] = 0.0

    def init(self, task: Task) -> ServerState:
        return ServerState(self.make_update(task.network())[0])

    # at each site
    def first(self, site: Site[Any], model: Model) -> Reply[Model]:
        """The weights after local training; in gradient mode the gradient in their place."""
        net = self.load_global(site := settled(site), model)
        start = weights(net)
        loss = self._gradient(net, site) if self.mode == "gradient" else self.fit(net, site)
        sent, kept = self.make_update(net)
        said = {"loss": loss, "scale": self._scale(site)}
        twice = self.weight > 0 and self.mode != "server"
        client_state: Any = (
            ClientState(start, self._sought(site, start, net), None if kept is UNCHANGED else kept) if twice else kept
        )
        return Reply(sent, weight=len(site.data.train), metrics=said, client_state=client_state)

    def second(self, site: Site[ClientState], average: Model) -> Reply[Model]:
        """h_k, on the batches of the first call, at most `limit` times as long as g_k."""
        held = site.client_state
        assert held is not None
        v = combine([held.gradient, average], [1, -1])
        exact = self.mode == "gradient" and self.product == "exact"
        h = self._product(site, held.start, v) if exact else self._difference(site, held, v)
        if self.limit is not None and norm(h) > self.limit * norm(held.gradient):
            h = combine([h], [self.limit * norm(held.gradient) / norm(h)])
        return Reply(h, weight=len(site.data.train), client_state=held.kept)

    def _scale(self, site: Site[Any]) -> float:
        """The gradient over what is sent: of local mode -1 / (lr steps) on the displacement w_k - w."""
        steps = self.count_steps(site.data.train, site.task.batch_size)
        return 1.0 if self.mode == "gradient" else -1 / (self.lr_at(site) * steps)

    def _sought(self, site: Site[Any], start: Model, net: nn.Module) -> Model:
        """g_k, from the net as it was trained."""
        end, scale = weights(net).parameters, self._scale(site)
        return end if self.mode == "gradient" else combine([end, start.parameters], [scale, -scale])

    def _gradient(self, net: nn.Module, site: Site[Any]) -> float:
        """Puts the mean gradient over the batches in the place of the parameters; their mean loss is returned."""
        total = 0.0
        for part, loss in self._losses(net, site):
            (part * loss).backward()
            total += part * loss.item()
        for parameter in net.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if not math.isfinite(total) or not all(p.isfinite().all() for p in net.parameters()):
            raise RunError("the gradient is not finite; lower the server's learning rate (algorithm.server_lr)")
        return total

    def _product(self, site: Site[ClientState], start: Model, v: Model) -> Model:
        net = site.load(start)
        site.rewind()
        result = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
        trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        directions = [torch.from_numpy(v[name].copy()).to(site.device) for name in trained]
        for part, loss in self._losses(net, site):
            first = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
            along = torch.stack([(g * d).sum() for g, d in zip(first, directions, strict=True)]).sum()
            second = torch.autograd.grad(along, list(trained.values()), materialize_grads=True)
            for name, h in zip(trained, second, strict=True):
                result[name] += part * h
        return Model.of({name: tensor.cpu().numpy() for name, tensor in result.items()})

    def _difference(self, site: Site[ClientState], held: ClientState, v: Model) -> Model:
        step = self.beta * (norm(held.start.parameters) or 1.0) / (norm(v) or 1.0)
        net = site.load(translate(held.start, v, step))
        start = weights(net)
        site.rewind()
        self._gradient(net, site) if self.mode == "gradient" else self.fit(net, site)
        return combine([self._sought(site, start, net), held.gradient], [1 / step, -1 / step])

    def _losses(self, net: nn.Module, site: Site[Any]) -> Iterator[tuple[float, Tensor]]:
        """The loss of each batch, and its part of all the examples."""
        split, size = site.data.train, min(site.task.batch_size, max(len(site.data.train), 1))
        steps = self.count_steps(split, site.task.batch_size)
        passes, rest = divmod(steps, math.ceil(len(split) / size))
        count = passes * len(split) + min(rest * size, len(split))
        for inputs, labels in batches(split, size, steps, site.device, site.task.augment):
            with torch.autocast(site.device.type, torch.bfloat16, enabled=bool(self.amp)):
                loss = site.task.loss(net(inputs), labels)
            yield len(inputs) / count, loss

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        asked = self if len(fleet.sites) > 1 else replace(self, weight=0.0)  # alone, nobody is asked twice
        model, replies = state.model, fleet.map(asked.first, state.model)
        sites, average, origin = list(replies), mean(replies), None if self.mode == "gradient" else model.parameters
        share = np.array([replies[site].weight for site in sites]) / sum(reply.weight for reply in replies.values())
        scale = np.array([replies[site].metrics["scale"] for site in sites])  # a gradient, over what was sent
        sent = [replies[site].payload.parameters for site in sites]
        products = gram(sent, origin) * np.outer(scale, scale)
        straight = average.parameters if origin is None else combine([origin, average.parameters], [1, -1])
        turn, spread = None, variance(products, share)
        apart = spread > ROUNDING**2 * float(share @ products @ share)  # else they differ by rounding, if at all
        if self.weight and apart and self.mode == "server":
            turn = combine(sent, (self.weight * (share - mean_shift(products, share, self.bandwidth))).tolist())
        elif self.weight and apart:
            factors = share * scale
            middle = combine(sent, factors) if origin is None else combine([origin, *sent], [-factors.sum(), *factors])
            found = fleet.at(sites).map(self.second, middle)
            along, longest = mean(found), max(norm(reply.payload) for reply in found.values())
            # Products that cancel out leave rounding, which must not be made long; those of a part do not even cancel.
            turns = norm(along) > ROUNDING * longest and len(found) == len(sites)
            turn = combine([along], [self.weight * norm(straight) / norm(along) if turns else 0.0])
        told = {"alignment_loss": spread, "gradient_cosine": cosine(products)}
        told["correction_ratio"] = norm(turn) / norm(straight) if turn is not None and norm(straight) else 0.0
        if self._is_mean:
            return ServerState(average if turn is None else translate(average, turn, -1.0)), told
        direction = straight if turn is None else translate(straight, turn, 1.0)
        return self._descended(average | model.parameters, direction, state.moments), told

    def _descended(self, model: Model, direction: Model, moments: OptimizerState) -> ServerState:
        parameter = nn.Parameter(torch.from_numpy(vector(model.parameters)))
        parameter.grad = torch.from_numpy(vector(direction))
        sgd: Any = partial(torch.optim.SGD, momentum=self.server_momentum)
        optimizer = (sgd if self.server_optimizer == "sgd" else torch.optim.Adam)([parameter], self.server_lr)
        load_optimizer_state(optimizer, moments)
        optimizer.step()
        return ServerState(
            model | from_vector(parameter.detach().numpy(), model.parameters), dump_optimizer_state(optimizer)
        )

    @property
    def _is_mean(self) -> bool:
        """Whether the server's step ends at the mean of the sites' weights, which then is taken as it is."""
        server = (self.server_optimizer, self.server_lr, self.server_momentum)
        return self.mode != "gradient" and server == ("sgd", 1, 0)

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        return self.predict_module(settled(site), state.model)


def settled(site: Site[Any]) -> Site[Any]:
    """The site between rounds, whatever a round that broke off after the first call left there."""
    return replace(site, client_state=site.client_state.kept) if isinstance(site.client_state, ClientState) else site
