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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

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
from raysim.training import mean_entropy, norm_layers, use_batch_statistics

GROUP = "personal"
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | TransposedConvolution
Gate = Literal["sigmoid", "softmax"]


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
    entropy: Annotated[float, Ge(0), "weight of the mean entropy, relative to its largest value"] = 10.0
    consistency: Annotated[float, Ge(0), "weight of the consistency of an image and its rotated, noisy copy"] = 0.1
    shape: Annotated[float, Ge(0), "weight of the length of outlines"] = 1e-6
    noise: Annotated[float, Ge(0), "standard deviation of the noise in the copy"] = 0.5
    reach: Annotated[int, Gt(0), "half-width of an outline, in pixels"] = 10

    def init(self, task: Task) -> ServerState:
        net = task.network()
        if task.outside and not has_convolution(net):
            raise ConfigError(f"algorithm=iopfl needs convolutions for outside sites; {type(net).__name__} has none")
        return ServerState(self.make_update(net)[0], has_outside=bool(task.outside))

    # at each inside site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, buffers = self.make_update(net)
        trained, before = weights(net), site.client_state
        running = trained if before is None else running_mean(before.running, trained, self.alpha)
        score = self._score(site, running) if self.keep == "best" else 0.0
        better = before is None or not score < before.score
        best = (running, score) if before is None or better else (before.best, before.score)
        if buffers is UNCHANGED:
            buffers = before.buffers if before else None
        metrics = {"loss": loss, "renewed": float(better)}
        client_state = ClientState(running, *best, buffers)
        return Reply(update, weight=len(site.data.train), metrics=metrics, client_state=client_state)

    @torch.no_grad()
    def _score(self, site: Site[Any], model: Model) -> float:
        """The task's main metric on the validation data, signed so that higher is better; 0 without such data."""
        (name, direction), *_ = site.task.score.better.items()
        scores = site.task.score(site.predict_module(model), site.data.val, site.device) if len(site.data.val) else {}
        return scores.get(name, 0.0) * (1 if direction == "higher" else -1)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, state.model)
        running, best = dict(state.running), dict(state.best)
        for site, reply in replies.items() if state.has_outside else ():
            update = reply.payload.parameters
            running[site] = running_mean(running[site], update, self.alpha) if site in running else update
            best[site] = running[site] if reply.metrics["renewed"] else best[site]
        return ServerState(mean(replies), running, best, state.has_outside), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        if site.name in site.task.inside:
            if site.client_state is None:
                return self.predict_module(site, state.model)
            return site.predict_module(site.client_state.best)
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


# Routed convolutions


class Router(nn.Module):
    """Mixing weights (B, E) from the means over space (B, C), by two linear layers without an activation between them.

    The initial weights are near 1/E, so that the first mixture is about the mean of the experts.
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
    """y_b = conv(x_b; sum_e r_be W_e, sum_e r_be b_e), as one grouped convolution per batch. The kernels are frozen."""

    def __init__(self, experts: Sequence[Convolution], gate: Gate, dropout: float) -> None:
        super().__init__()
        like = experts[-1]
        self.transposed, self.dims = isinstance(like, TransposedConvolution), len(like.kernel_size)
        self.options: tuple[Any, ...] = (like.stride, like.padding, like.dilation, like.groups)
        self.output_padding = like.output_padding
        self.pad_input = None if like.padding_mode == "zeros" else (explicit_padding(like), like.padding_mode)
        self.router = Router(like.in_channels, len(experts), gate, dropout).to(like.weight)
        self.register_buffer("kernels", torch.stack([expert.weight.detach() for expert in experts]))
        biases = [expert.bias.detach() for expert in experts if expert.bias is not None]
        self.register_buffer("biases", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.options
        weights = self.router(x.flatten(2).mean(2))
        kernel = torch.einsum("be,e...->b...", weights, self.kernels).flatten(0, 1)
        bias = None if self.biases is None else (weights @ self.biases).flatten()
        if self.pad_input is not None:
            x, padding = F.pad(x, *self.pad_input), 0
        count, grouped = len(x), x.reshape(1, -1, *x.shape[2:])
        if self.transposed:
            convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dims - 1]
            y = convolve(grouped, kernel, bias, stride, padding, self.output_padding, count * groups, dilation)
        else:
            convolve = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
            y = convolve(grouped, kernel, bias, stride, padding, dilation, count * groups)
        return torch.as_tensor(y).reshape(count, -1, *y.shape[2:])


def explicit_padding(layer: Convolution) -> list[int]:
    """The padding of `layer` as for `F.pad`: before and after each axis, starting with the last axis."""
    spans = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        pairs = [(span // 2, span - span // 2) if layer.padding == "same" else (0, 0) for span in spans]
    else:
        pairs = [(amount, amount) for amount in layer.padding]
    return [amount for pair in reversed(pairs) for amount in pair]


def route(nets: Sequence[nn.Module], gate: Gate, dropout: float) -> nn.Module:
    """The last of `nets`; each of its convolutions is replaced by a mix of the convolutions of all `nets`.

    Everything is frozen except the routers. Raises ValueError for a network without a convolution.
    """
    convolutions = [{name: m for name, m in net.named_modules() if isinstance(m, Convolution)} for net in nets]
    net = nets[-1].requires_grad_(False)
    if not has_convolution(net):
        raise ValueError("the network has no convolution to route")
    for name in convolutions[-1]:
        parent, _, last = name.rpartition(".")
        layer = RoutedConvolution([layers[name] for layers in convolutions], gate, dropout)
        setattr(net.get_submodule(parent), last, layer)
    return net


def has_convolution(net: nn.Module) -> bool:
    return any(isinstance(module, Convolution) for module in net.modules())


def routers(net: nn.Module) -> list[Router]:
    """The routers of a network returned by `route`."""
    return [module for module in net.modules() if isinstance(module, Router)]
