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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean, weights
from raysim.core.contracts import Array
from raysim.core.errors import ConfigError, RunError
from raysim.core.network_outputs import full_resolution
from raysim.training.test_time_adaptation import entropy as mean_entropy, norm_layers, use_batch_statistics


@dataclass(frozen=True)
class ClientState:
    """A site's running mean of weights, the best of it so far, and that one's score; `buffers` where they are local."""

    running: Model
    best: Model
    score: float
    buffers: Model | None = None


@dataclass(frozen=True)
class ServerState:
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

    def init(self, task: Task) -> ServerState:
        if task.outside and not can_be_routed(net := task.network()):
            raise ConfigError(f"algorithm=iopfl mixes convolutions at outside sites; {type(net).__name__} has none")
        return ServerState(self.make_update(net if task.outside else task.network())[0], for_outside=bool(task.outside))

    # at each inside site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        sent, buffers = self.make_update(net)
        trained, before = weights(net), site.client_state
        running = trained if before is None else average(before.running, trained, self.alpha)
        score = self._score(site, running) if self.keep == "best" else 0.0
        better = before is None or not score < before.score
        kept = (before.buffers if before else None) if buffers is UNCHANGED else buffers
        best = (running, score) if before is None or better else (before.best, before.score)
        said = {"loss": loss, "renewed": float(better)}
        return Reply(sent, weight=len(site.data.train), metrics=said, client_state=ClientState(running, *best, kept))

    @torch.no_grad()
    def _score(self, site: Site[Any], model: Model) -> float:
        """Of the task's main metric on the validation data, more is better; 0 where there are none."""
        (name, way), *_ = site.task.score.better.items()
        found = site.task.score(site.predict_module(model), site.data.val, site.device) if len(site.data.val) else {}
        return found.get(name, 0.0) * (1 if way == "higher" else -1)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, state.model)
        running, best = dict(state.running), dict(state.best)
        for site, reply in replies.items() if state.for_outside else ():
            sent = reply.payload.parameters
            running[site] = average(running[site], sent, self.alpha) if site in running else sent
            best[site] = running[site] if reply.metrics["renewed"] else best[site]
        return ServerState(mean(replies), running, best, state.for_outside), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        if site.name in site.task.inside:
            return (
                site.predict_module(site.client_state.best)
                if site.client_state
                else self.predict_module(site, state.model)
            )
        images = (site.data.test if len(site.data.test) else site.data.val).inputs
        if not state.best or not len(images):
            return self.predict_module(site, state.model)
        experts = (site.load(model).eval() for _, model in sorted(state.best.items()))
        net = route([*experts, self.predict_module(site, state.model)], self.gate, self.dropout).to(site.device)
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


Gate = Literal["sigmoid", "softmax"]


class Router(nn.Module):
    """Mixing weights (B, E) from the means over space (B, C), by two linear layers without anything between them.

    They start near 1/E each, so that the first mixture is about the mean of the experts.
    """

    def __init__(self, channels: int, experts: int, gate: Gate, dropout: float) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(channels, 2 * channels), nn.Dropout(dropout)
        self.second, self.gate = nn.Linear(2 * channels, experts), gate
        nn.init.constant_(self.second.bias, -math.log(experts - 1) if gate == "sigmoid" and experts > 1 else 0.0)

    def forward(self, means: Tensor) -> Tensor:
        logits: Tensor = self.second(self.drop(self.first(means)))
        return logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(1)


class RoutedConvolution(nn.Module):
    """y_b = conv(x_b; sum_e r_be W_e, sum_e r_be b_e): one grouped convolution for a batch; the kernels are frozen."""

    def __init__(self, experts: Sequence[_ConvNd], gate: Gate, dropout: float) -> None:
        super().__init__()
        like = experts[-1]
        self.like: tuple[Any, ...] = (
            like.stride,
            like.padding,
            like.dilation,
            like.groups,
            getattr(like, "output_padding", 0),
        )
        self.transposed, self.dims = isinstance(like, _ConvTransposeNd), len(like.kernel_size)
        self.around = (
            None if like.padding_mode == "zeros" else (like._reversed_padding_repeated_twice, like.padding_mode)
        )
        self.router = Router(like.in_channels, len(experts), gate, dropout).to(like.weight)
        self.register_buffer("kernels", torch.stack([expert.weight.detach() for expert in experts]))
        biases = [expert.bias.detach() for expert in experts if expert.bias is not None]
        self.register_buffer("biases", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups, output_padding = self.like
        weights = self.router(x.flatten(2).mean(2))
        kernel = torch.einsum("be,e...->b...", weights, self.kernels).flatten(0, 1)
        bias = None if self.biases is None else (weights @ self.biases).flatten()
        if self.around is not None:
            x, padding = F.pad(x, *self.around), 0
        count, together = len(x), x.reshape(1, -1, *x.shape[2:])
        if self.transposed:
            turn: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dims - 1]
            y = turn(together, kernel, bias, stride, padding, output_padding, count * groups, dilation)
        else:
            turn = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
            y = turn(together, kernel, bias, stride, padding, dilation, count * groups)
        return torch.as_tensor(y).reshape(count, -1, *y.shape[2:])


def route(nets: Sequence[nn.Module], gate: Gate, dropout: float) -> nn.Module:
    """The last of `nets`, changed: each convolution, transposed or not, now mixes those of all. The rest stays its own.

    Everything is frozen but the routers. Raises ValueError for a network without a convolution.
    """
    found = [{name: m for name, m in net.named_modules() if isinstance(m, _ConvNd)} for net in nets]
    net = nets[-1].requires_grad_(False)
    if not can_be_routed(net):
        raise ValueError("there is no convolution to route in this network")
    for name in found[-1]:
        parent, _, last = name.rpartition(".")
        layer = RoutedConvolution([layers[name] for layers in found], gate, dropout)
        setattr(net.get_submodule(parent), last, layer)
    return net


def can_be_routed(net: nn.Module) -> bool:
    """Whether there is a convolution in `net`."""
    return any(isinstance(module, _ConvNd) for module in net.modules())


def routers(net: nn.Module) -> list[Router]:
    """The routers of a network that `route` made."""
    return [module for module in net.modules() if isinstance(module, Router)]
