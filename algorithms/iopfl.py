"""IOP-FL: inside sites have personal models, running means of their weights; outside sites mix all of them per image.

Jiang, Yang, Cheng, Dou, "IOP-FL: Inside-Outside Personalization for Federated Medical Image Segmentation", IEEE TMI
42(7), 2023, https://arxiv.org/abs/2204.08467; follows the authors' reference implementation, with its bugs fixed.

    inside:   w <- FedAvg;  theta_k^0 = w_k^0,  theta_k^t = alpha theta_k^(t-1) + (1 - alpha) w_k^t, at the site
    outside:  y = conv(x; sum_e r_e W_e) with W_1..W_K = theta_k, W_(K+1) = w, frozen, r = router(mean of x over space)
              routers and scales and shifts of normalisation minimise, on images without labels,
              entropy H(p)/log C  +  consistency (p(T^-1 f(T x + noise)) - p(f(x)))^2  +  shape ||max p - min p||_F
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from raysim import (
    UNCHANGED,
    Array,
    ConfigError,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    PredictionSet,
    Predictor,
    Reply,
    RunError,
    Site,
    Task,
    combine,
    full_resolution,
    mean,
    weights,
)
from raysim.training import (
    Gate,
    has_convolution,
    mean_entropy,
    norm_layers,
    relative_distance,
    require_classes,
    route_convolutions,
    routers,
    routing_ceiling,
    use_batch_statistics,
    validation_score,
)

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The global model. If there are outside sites, also the models of each inside site, computed from its updates."""

    model: Model
    running: Mapping[str, Model] = field(default_factory=dict)
    best: Mapping[str, Model] = field(default_factory=dict)
    has_outside: bool = False


@dataclass(frozen=True)
class ClientState:
    """The running mean of the site's weights, the best mean so far with its score, and local buffers."""

    running: Model
    best: Model
    score: float
    buffers: Model | None = None


@dataclass(frozen=True, kw_only=True)
class IOPFL(LocalTraining):
    alpha: Annotated[float, Ge(0), Le(1), "weight of the previous personal model in the running mean"] = 0.1
    keep: Annotated[Literal["best", "last"], "personal model: the best on the site's validation data, or the last"] = (
        "best"
    )
    gate: Annotated[Gate, "activation of the experts' mixing weights"] = "sigmoid"
    dropout: Annotated[float, Ge(0), Lt(1), "dropout in the routers during adaptation"] = 0.2
    passes: Annotated[int, Ge(0), "adaptation: passes over an outside site's test images, without labels"] = 10
    outside_lr: Annotated[float, Ge(0), "learning rate of Adam at outside sites"] = 1e-3
    entropy: Annotated[
        float, Ge(0), "weight of the mean entropy over its largest value; the authors' 10 is 10 x batch / classes here"
    ] = 10.0
    consistency: Annotated[float, Ge(0), "weight of the consistency of an image and its rotated, noisy copy"] = 0.1
    shape: Annotated[float, Ge(0), "weight of the length of outlines"] = 1e-6
    noise: Annotated[float, Ge(0), "standard deviation of the noise in the copy"] = 0.5
    reach: Annotated[int, Gt(0), "half-width of an outline, in pixels"] = 10
    single: Annotated[str | None, "outside: the inside site whose personal model predicts, instead of routing"] = None
    lr_floor: Annotated[float, Ge(0), Le(1), "lowest learning rate of the schedule, as a fraction of lr"] = 0.1

    def init(self, task: Task) -> ServerState:
        net = task.network()
        if task.outside:
            require_classes(task, "algorithm=iopfl", "lowers the entropy of the softmax at outside sites")
        if task.outside and not has_convolution(net):
            raise ConfigError(f"algorithm=iopfl needs convolutions for outside sites; {type(net).__name__} has none")
        self.check_single(task)
        return ServerState(self.make_update(net)[0], has_outside=bool(task.outside))

    def check_rounds(self, rounds: int) -> None:
        """Warns if the schedule ends with a rate at which personal models are no longer renewed."""
        self.warn_of_small_rate(rounds)

    def check_single(self, task: Task) -> None:
        """Raises ConfigError if `single` is not an inside site."""
        if self.single is not None and self.single not in task.inside:
            raise ConfigError(
                f"algorithm.single={self.single}: no such inside site; expected one of {', '.join(task.inside)}"
            )

    # at each inside site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, buffers = self.make_update(net)
        trained, before = weights(net), site.client_state
        running = trained if before is None else running_mean(before.running, trained, self.alpha)
        score = (validation_score(site, site.predict_module(running)) or 0.0) if self.keep == "best" else 0.0
        better = before is None or not score < before.score
        best = (running, score) if before is None or better else (before.best, before.score)
        if buffers is UNCHANGED:
            buffers = before.buffers if before else None
        metrics = {"loss": loss, "renewed": float(better), "personal_distance": relative_distance(running, model)}
        client_state = ClientState(running, *best, buffers)
        return Reply(update, weight=len(site.data.train), metrics=metrics, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, state.model)
        running, best = dict(state.running), dict(state.best)
        for site, reply in replies.items() if state.has_outside else ():
            update = reply.payload.parameters
            running[site] = running_mean(running[site], update, self.alpha) if site in running else update
            best[site] = running[site] if reply.metrics["renewed"] else best[site]
        return ServerState(mean(replies), running, best, state.has_outside), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor | PredictionSet:
        if site.name in site.task.inside:
            if site.client_state is None:
                return self.predict_module(site, state.model)
            return site.predict_module(site.client_state.best)
        images = (site.data.test if len(site.data.test) else site.data.val).inputs
        self.check_single(site.task)
        if not state.best or not len(images):
            return self.predict_module(site, state.model)
        if self.single is not None:
            single = state.best.get(self.single)  # a site that has not trained yet has no model
            return self.predict_module(site, state.model) if single is None else site.predict_module(single)
        experts = [site.predict_module(model) for _, model in sorted(state.best.items())]
        experts.append(self.predict_module(site, state.model))
        net = route_convolutions([*experts[:-1], self.predict_module(site, state.model)], self.gate, self.dropout)
        use_batch_statistics(net.to(site.device))
        self.adapt(net, images, site.task.batch_size, site.device)
        return PredictionSet(net, notes=lambda split: routing_ceiling(site, split, experts))

    @torch.enable_grad()
    def adapt(self, net: nn.Module, images: Array, batch: int, device: torch.device) -> None:
        """Train routers, scales and shifts of `net` in place for `passes` over the images (N, C, *space), in order.

        Raises RunError if a parameter is not finite after the last pass.
        """
        layers = [*routers(net), *norm_layers(net).values()]
        adapted = [p.requires_grad_() for layer in layers for p in layer.parameters()]
        optimizer = torch.optim.Adam(adapted, self.outside_lr)
        for router in routers(net):
            router.train()
        batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / batch))
        for index in batches * self.passes:
            optimizer.zero_grad()
            self.loss(net, torch.from_numpy(np.ascontiguousarray(images[index])).to(device)).backward()
            optimizer.step()
        if not all(parameter.isfinite().all() for parameter in adapted):
            raise RunError(f"the routers are not finite after {self.passes} passes; lower algorithm.outside_lr")
        net.eval().requires_grad_(False)

    def loss(self, net: nn.Module, images: Tensor) -> Tensor:
        """Entropy, consistency and shape terms of the predictions for images (B, C, *space), weighted and summed."""
        logits = full_resolution(net(images), images.ndim)
        turn, turn_back = turn_functions(draw_turns(images))
        p = logits.softmax(1)
        turned_logits = full_resolution(net(turn(images + self.noise * torch.randn_like(images))), images.ndim)
        q = (turn_back(turned_logits) if turned_logits.ndim > 2 else turned_logits).softmax(1)
        total: Tensor = self.entropy * mean_entropy(logits) / math.log(logits.shape[1])
        total = total + self.consistency * (q - p).square().mean()
        return total + self.shape * outline_length(p[:, 1:], self.reach) if logits.ndim > 2 else total


def running_mean(before: Model, update: Model, alpha: float) -> Model:
    """alpha before + (1 - alpha) update; integer counters are those of `update`."""
    mixed = combine([before, update], [alpha, 1 - alpha])
    return update | mixed.only(name for name in mixed if mixed[name].dtype.kind == "f")


def outline_length(p: Tensor, reach: int) -> Tensor:
    """||max p - min p||_F over windows of size 2 reach + 1, for foreground probabilities p (B, K-1, *space)."""
    norm: Tensor = (window_max(p, reach) + window_max(-p, reach)).norm()
    return norm


def window_max(p: Tensor, reach: int) -> Tensor:
    """The maximum over the window of size 2 reach + 1 around each position, computed one axis after the other."""
    for axis in range(2, p.ndim):
        lines = p.movedim(axis, -1)
        maxima = F.max_pool1d(lines.reshape(-1, 1, lines.shape[-1]), 2 * reach + 1, 1, reach)
        p = maxima.reshape(lines.shape).movedim(-1, axis)
    return p


def draw_turns(images: Tensor) -> list[tuple[bool, int]]:
    """For each image, at random: whether it is flipped, and its quarter turns (0 or 2 if its sides differ)."""
    quarters = 1 if images.shape[-1] == images.shape[-2] else 2
    draws = torch.rand(len(images), 2).tolist()
    return [(flip < 0.5, quarters * int(turn * 4 // quarters)) for flip, turn in draws]


def turn_functions(turns: list[tuple[bool, int]]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A function that flips and then rotates each image of a batch in the plane of its last two axes; its inverse."""

    def turn(x: Tensor) -> Tensor:
        return torch.stack([(image.flip(-2) if flip else image).rot90(k, (-2, -1)) for image, (flip, k) in pairs(x)])

    def turn_back(x: Tensor) -> Tensor:
        unrotated = ((image.rot90(-k, (-2, -1)), flip) for image, (flip, k) in pairs(x))
        return torch.stack([image.flip(-2) if flip else image for image, flip in unrotated])

    def pairs(x: Tensor) -> Iterator[tuple[Tensor, tuple[bool, int]]]:
        return zip(x, turns, strict=True)

    return turn, turn_back
