"""IOP-FL: inside, a personal model that averages a site's own weights; outside, all of them mixed for each image.

Jiang, Yang, Cheng, Dou, "IOP-FL: Inside-Outside Personalization for Federated Medical Image Segmentation", IEEE TMI
42(7), 2023, https://arxiv.org/abs/2204.08467, as its authors' code has it, without that code's slips.

    inside:   w <- FedAvg;  theta_k^0 = w_k^0,  theta_k^t = alpha theta_k^(t-1) + (1 - alpha) w_k^t, at the site
    outside:  y = conv(x; sum_e r_e W_e) with W_1..W_K = theta_k, W_(K+1) = w, frozen, r = router(mean of x over space)
              routers and scales and shifts of normalisation descend, on images without labels,
              entropy H(p)/log C  +  consistency (p(T^-1 f(T x + noise)) - p(f(x)))^2  +  shape ||max p - min p||_F
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from raysim import KEEP, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean, weights
from raysim.adaptation import entropy as mean_entropy, norm_layers, use_batch_statistics
from raysim.errors import ConfigError, RunError
from raysim.routing import can_be_routed, route, routers
from raysim.tasks.names import full_resolution
from raysim.types import Array


@dataclass(frozen=True)
class Personal:
    """A site's running mean of weights, the best of it so far, and that one's score; `buffers` where they are local."""

    running: Model
    best: Model
    score: float
    buffers: Model | None = None


@dataclass(frozen=True)
class Known:
    """The global model; for outside sites also what each inside site has, made of the weights it sends."""

    model: Model
    running: Mapping[str, Model] = field(default_factory=dict)
    best: Mapping[str, Model] = field(default_factory=dict)
    for_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class IOPFL(LocalTraining):
    alpha: Annotated[float, Ge(0), Le(1), "what of its former self a personal model keeps in a round"] = 0.1
    keep: Annotated[Literal["best", "last"], "the personal model: best on the site's validation data, or the last"] = (
        "best"
    )
    gate: Annotated[Literal["sigmoid", "softmax"], "of the mixing weights of the experts"] = "sigmoid"
    dropout: Annotated[float, Ge(0), Lt(1), "in the routers, while they adapt"] = 0.2
    passes: Annotated[
        int, Ge(0), "over an outside site's test images, without labels; the last one's answers count"
    ] = 10
    outside_lr: Annotated[float, Ge(0), "learning rate of Adam at outside sites"] = 1e-3
    entropy: Annotated[float, Ge(0), "weight of the mean entropy, over its largest value"] = 10.0
    consistency: Annotated[
        float, Ge(0), "weight of the difference between an image's and its turned copy's answers"
    ] = 0.1
    shape: Annotated[float, Ge(0), "weight of the length of outlines"] = 1e-6
    noise: Annotated[float, Ge(0), "standard deviation of the noise on the copy"] = 0.5
    reach: Annotated[int, Gt(0), "pixels to each side that an outline spreads over"] = 10

    def init(self, task: Task) -> Known:
        if task.outside and not can_be_routed(net := task.network()):
            raise ConfigError(f"algorithm=iopfl mixes convolutions at outside sites; {type(net).__name__} has none")
        return Known(self.send(net if task.outside else task.network())[0], for_outside=bool(task.outside))

    # at each inside site
    def client(self, site: Site[Personal], model: Model) -> Reply[Model]:
        net = self.receive(site, model)
        loss = self.fit(net, site)
        sent, buffers = self.send(net)
        trained, before = weights(net), site.memory
        running = trained if before is None else average(before.running, trained, self.alpha)
        score = self._score(site, running) if self.keep == "best" else 0.0
        better = before is None or not score < before.score
        kept = (before.buffers if before else None) if buffers is KEEP else buffers
        best = (running, score) if before is None or better else (before.best, before.score)
        said = {"loss": loss, "renewed": float(better)}
        return Reply(sent, weight=len(site.data.train), metrics=said, memory=Personal(running, *best, kept))

    @torch.no_grad()
    def _score(self, site: Site[Any], model: Model) -> float:
        """Of the task's main metric on the validation data, more is better; 0 where there are none."""
        (name, way), *_ = site.task.score.better.items()
        found = site.task.score(site.answer(model), site.data.val, site.device) if len(site.data.val) else {}
        return found.get(name, 0.0) * (1 if way == "higher" else -1)

    # at the server
    def round(self, fleet: Fleet, state: Known) -> tuple[Known, Metrics]:
        replies = fleet.map(self.client, state.model)
        running, best = dict(state.running), dict(state.best)
        for site, reply in replies.items() if state.for_outside else ():
            sent = reply.payload.parameters
            running[site] = average(running[site], sent, self.alpha) if site in running else sent
            best[site] = running[site] if reply.metrics["renewed"] else best[site]
        return Known(mean(replies), running, best, state.for_outside), {}

    def predictor(self, site: Site[Personal], state: Known) -> Predictor:
        if site.name in site.task.inside:
            return site.answer(site.memory.best) if site.memory else self.answer(site, state.model)
        images = (site.data.test if len(site.data.test) else site.data.val).inputs
        if not state.best or not len(images):
            return self.answer(site, state.model)
        experts = (site.load(model).eval() for _, model in sorted(state.best.items()))
        net = route([*experts, self.answer(site, state.model)], self.gate, self.dropout).to(site.device)
        use_batch_statistics(net)
        self.adapt(net, images, site.task.batch_size, site.device)
        return net

    @torch.enable_grad()
    def adapt(self, net: nn.Module, images: Array, batch: int, device: torch.device) -> None:
        """Routers, scales and shifts of `net` after `passes` over the images (N, C, *space), in their order."""
        layers = [*routers(net), *norm_layers(net).values()]
        moving = [p.requires_grad_() for layer in layers for p in layer.parameters()]
        optimizer = torch.optim.Adam(moving, self.outside_lr)
        for router in routers(net):
            router.train()
        parts = np.array_split(np.arange(len(images)), math.ceil(len(images) / batch))
        for part in parts * self.passes:
            optimizer.zero_grad()
            self.loss(net, torch.from_numpy(np.ascontiguousarray(images[part])).to(device)).backward()
            optimizer.step()
        if not all(parameter.isfinite().all() for parameter in moving):
            raise RunError(f"the routers are not finite after {self.passes} passes; lower algorithm.outside_lr")
        net.eval().requires_grad_(False)

    def loss(self, net: nn.Module, images: Tensor) -> Tensor:
        plain = full_resolution(net(images), images.ndim)
        p, ways = plain.softmax(1), turns(images)
        there, back = turned(ways)
        copy = there(images + self.noise * torch.randn_like(images))
        answer = full_resolution(net(copy), images.ndim)
        q = (back(answer) if answer.ndim > 2 else answer).softmax(1)
        total: Tensor = self.entropy * mean_entropy(plain) / math.log(plain.shape[1])
        total = total + self.consistency * (q - p).square().mean()
        return total + self.shape * outline(p[:, 1:], self.reach) if plain.ndim > 2 else total


def average(before: Model, now: Model, alpha: float) -> Model:
    """alpha before + (1 - alpha) now; counters as they are now."""
    mixed = combine([before, now], [alpha, 1 - alpha])
    return now | mixed.only(name for name in mixed if mixed[name].dtype.kind == "f")


def turns(images: Tensor) -> list[tuple[bool, int]]:
    """For each image whether it is flipped, and its quarter turns, drawn; half turns only where sides differ."""
    quarter = 1 if images.shape[-1] == images.shape[-2] else 2
    drawn = torch.rand(len(images), 2).tolist()
    return [(flip < 0.5, quarter * int(turn * 4 // quarter)) for flip, turn in drawn]


def turned(ways: list[tuple[bool, int]]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What flips and then turns each image of a batch in the plane of its last two axes, and what undoes it."""

    def there(x: Tensor) -> Tensor:
        return torch.stack([(one.flip(-2) if flip else one).rot90(k, (-2, -1)) for one, (flip, k) in pairs(x)])

    def back(x: Tensor) -> Tensor:
        straight = ((one.rot90(-k, (-2, -1)), flip) for one, (flip, k) in pairs(x))
        return torch.stack([one.flip(-2) if flip else one for one, flip in straight])

    def pairs(x: Tensor) -> Iterator[tuple[Tensor, tuple[bool, int]]]:
        return zip(x, ways, strict=True)

    return there, back


def outline(p: Tensor, reach: int) -> Tensor:
    """||max p - min p||_F over windows of 2 reach + 1: a band along every outline of foregrounds (B, K-1, *space)."""
    band: Tensor = (widest(p, reach) + widest(-p, reach)).norm()
    return band


def widest(p: Tensor, reach: int) -> Tensor:
    for axis in range(2, p.ndim):  # one axis after the other: the largest of the whole window
        lines = p.movedim(axis, -1)
        p = (
            F.max_pool1d(lines.reshape(-1, 1, lines.shape[-1]), 2 * reach + 1, 1, reach)
            .reshape(lines.shape)
            .movedim(-1, axis)
        )
    return p
