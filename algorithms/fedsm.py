"""FedSM with SoftPull: a global model, a personal model per site, and a selector that chooses a model for each image.

Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the Generalization Gap of Cross-silo Federated
Medical Image Segmentation", CVPR 2022, https://arxiv.org/abs/2203.10144; follows the authors' implementation.

    at site k: train w_k from the global w, then v_k from the personal w_p^k, then s_k from the selector s, which learns
    to predict the site (label k for all images of site k), with one Adam step per pass over all images
    w <- sum_k n_k/n w_k, likewise s and the moments of its Adam
    SoftPull: w_p^k <- pull v_k + (1 - pull)/(K-1) sum_(j != k) v_j
                    = v + mu (v_k - v)  with the plain mean v and mu = (K pull - 1)/(K-1)
    an image x is routed to w_p^k, k = argmax softmax(s(x)), if that softmax is above `threshold`, otherwise to w
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from raysim import (
    UNCHANGED,
    ConfigError,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    PredictionSet,
    Reply,
    Site,
    Split,
    Task,
    combine,
    full_resolution,
    load,
    mean,
    preserve_rng,
    weights,
)
from raysim.training import OptimizerState, dump_optimizer_state, load_optimizer_state

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The global model, each site's personal model, the selector, and the moments of the selector's Adam."""

    model: Model
    personal: Mapping[str, Model]
    selector: Model
    moments: Model | None = None


@dataclass(frozen=True)
class ClientState:
    """The site's buffers if they are local, and the moments of its optimisers."""

    buffers: Model | None = None
    model_moments: OptimizerState = field(default_factory=dict)
    personal_moments: OptimizerState = field(default_factory=dict)
    selector_moments: Model | None = None


@dataclass(frozen=True)
class Broadcast:
    """The global model, the selector, and the moments of the selector's Adam if they are averaged."""

    model: Model
    selector: Model
    moments: Model | None


@dataclass(frozen=True)
class Update:
    """The site's three trained models, and the moments of the selector's Adam if they are averaged."""

    model: Model
    personal: Model
    selector: Model
    moments: Model | None


@dataclass(frozen=True, kw_only=True)
class FedSM(LocalTraining):
    pull: Annotated[float, Gt(0), Le(1), "weight of the site's own model in its personal model; 1 / sites: mean"] = 0.7
    threshold: Annotated[float, Ge(0), Le(1), "confidence above which an image is routed to a personal model"] = 0.9
    selector: Annotated[Literal["small", "vgg11"], "selector; small: about as many parameters as the network"] = "small"
    selector_lr: Annotated[float, Gt(0), "learning rate of the selector's Adam"] = 1e-3
    selector_epochs: Annotated[int, Gt(0), "steps of the selector per round, each over all images of the site"] = 1
    average_moments: Annotated[bool, "whether the moments of the selector's Adam are also averaged"] = True
    keep_moments: Annotated[bool, "whether the other two optimisers keep their moments between rounds"] = True

    def init(self, task: Task) -> ServerState:
        if len(task.inside) > 1 and self.pull * len(task.inside) < 1 - 1e-6:
            least = f"{1 / len(task.inside):g} (the plain mean of {len(task.inside)} inside sites)"
            raise ConfigError(f"algorithm.pull={self.pull:g}: expected {least} to 1; less would overshoot the mean")
        model = self.make_update(net := task.network())[0]
        selector = weights(new_selector.__wrapped__(task, self.selector))
        return ServerState(model, dict.fromkeys(task.inside, weights(net)), selector)

    # at each site
    def client(self, site: Site[ClientState], broadcast: Broadcast, personal: Model) -> Reply[Update]:
        before = site.client_state or ClientState()
        model_moments, personal_moments = dict(before.model_moments), dict(before.personal_moments)
        net = self.load_global(site, broadcast.model)
        # The global model is trained first, so that it uses the same random numbers as FedAvg.
        loss = self.fit(net, site, optimizer_state=model_moments if self.keep_moments else None)
        update, buffers = self.make_update(net)
        personal_net = site.load(personal)
        personal_loss = self.fit(personal_net, site, optimizer_state=personal_moments if self.keep_moments else None)
        moments = broadcast.moments if self.average_moments else before.selector_moments
        selector, moments, metrics = self._fit_selector(site, broadcast.selector, moments)
        payload = Update(update, weights(personal_net), selector, moments if self.average_moments else None)
        client_state = ClientState(
            before.buffers if buffers is UNCHANGED else buffers,
            model_moments,
            personal_moments,
            None if self.average_moments else moments,
        )
        metrics = {"loss": loss, "personal_loss": personal_loss} | metrics
        return Reply(payload, weight=len(site.data.train), metrics=metrics, client_state=client_state)

    def _fit_selector(self, site: Site[Any], model: Model, moments: Model | None) -> tuple[Model, Model, Metrics]:
        """The selector trained on this site's label, its moments, and its loss and accuracy before the training."""
        net = self._load_selector(site, model).train()
        load_optimizer_state(optimizer := torch.optim.Adam(net.parameters(), self.selector_lr), moments)
        label, count, losses, correct = site.task.inside.index(site.name), len(site.data.train), list[float](), 0.0
        for epoch in range(self.selector_epochs):
            optimizer.zero_grad()
            losses.append(0.0)
            for inputs in batched_inputs(site.data.train, site):
                labels = torch.full((len(inputs),), label, device=site.device)
                loss = nn.functional.cross_entropy(logits := net(inputs), labels, reduction="sum")
                (loss / count).backward()
                losses[-1] += loss.item() / count
                correct += float((logits.argmax(1) == label).sum()) if epoch == 0 else 0.0
            optimizer.step()
        optimizer.zero_grad()
        metrics = {"selector_loss": losses[0], "selector_accuracy": correct / count}
        return weights(net), Model.of(dump_optimizer_state(optimizer)), metrics

    def _load_selector(self, site: Site[Any], model: Model) -> nn.Module:
        load(net := new_selector(site.task, self.selector).to(site.device), model)
        return net

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        broadcast = Broadcast(state.model, state.selector, state.moments)
        replies = fleet.map(self.client, broadcast, {site: state.personal[site] for site in fleet.sites})
        pulled = softpull({site: reply.payload.personal for site, reply in replies.items()}, self.pull)
        model, selector = (mean(replies, attrgetter(name)) for name in ("model", "selector"))
        moments = mean(replies, attrgetter("moments")) if self.average_moments else None
        return ServerState(model, {**state.personal, **pulled}, selector, moments), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> PredictionSet:
        personal = [state.personal[name] for name in site.task.inside]
        global_net = self.predict_module(site, state.model)
        selector = deepcopy(self._load_selector(site, state.selector)).eval()
        routed = RoutedPredictor(selector, personal, global_net, site.predict_module(personal[0]), self.threshold)
        own = site.task.inside.index(site.name) if site.name in site.task.inside else None
        others = {} if own is None else {"personal": site.predict_module(personal[own])}
        return PredictionSet(routed, others, lambda split: routed.shares(split, site, own))


@dataclass(frozen=True)
class RoutedPredictor:
    """The super model: the selector routes each image of a batch to a personal model or to the global model."""

    selector: nn.Module
    personal: Sequence[Model]
    global_net: nn.Module
    personal_net: nn.Module  # the weights of the personal models are loaded into it in turn
    threshold: float

    def route(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """For each image (B,): the site that the selector predicts, and the model to use, -1 for the global model."""
        confidence, predicted = self.selector(inputs).softmax(1).max(1)
        return predicted, torch.where(confidence > self.threshold, predicted, -1)

    def __call__(self, inputs: Tensor) -> Tensor:
        routes, parts, order = self.route(inputs)[1], list[Tensor](), list[Tensor]()
        for route in routes.unique().tolist():
            order.append((routes == route).nonzero()[:, 0])
            if route < 0:  # the whole batch, because the global model may use batch statistics
                parts.append(full_resolution(self.global_net(inputs), inputs.ndim)[order[-1]])
            else:
                load(self.personal_net, self.personal[route])
                parts.append(full_resolution(self.personal_net(inputs[order[-1]]), inputs.ndim))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def shares(self, split: Split, site: Site[Any], own: int | None) -> Metrics:
        """The fraction of images routed to each kind of model and, at inside sites, the selector's accuracy."""
        routed = [self.route(inputs) for inputs in batched_inputs(split, site)]
        predicted, routes = (torch.cat(part).cpu().numpy() for part in zip(*routed, strict=True))
        shares = {"routed_global": (routes < 0).mean(), "routed_other": ((routes >= 0) & (routes != own)).mean()}
        if own is not None:
            shares |= {"routed_own": (routes == own).mean(), "selector_accuracy": (predicted == own).mean()}
        return {name: float(share) for name, share in shares.items()}


def softpull(models: Mapping[str, Model], pull: float) -> dict[str, Model]:
    """v + mu (v_k - v) with the plain mean v: each deviation is multiplied by mu = (K pull - 1) / (K - 1).

    With fewer than 1/pull models, mu is 0, so that no model overshoots the mean. Integer counters are not changed.
    """
    count = len(models)
    if count == 1 or pull == 1:
        return dict(models)
    mu, average = max(0.0, (count * pull - 1) / (count - 1)), combine(models.values(), [1 / count] * count)
    floats = [name for name in average if average[name].dtype.kind == "f"]
    return {site: model | combine([average, model], [1 - mu, mu]).only(floats) for site, model in models.items()}


def batched_inputs(split: Split, site: Site[Any]) -> Iterator[Tensor]:
    """Yields all inputs in order, in batches."""
    for start in range(0, len(split), site.task.batch_size):
        yield torch.from_numpy(split.inputs[start : start + site.task.batch_size].copy()).to(site.device)


# Selector networks


@lru_cache(maxsize=4)
def new_selector(task: Task, kind: str) -> nn.Module:
    """A new selector among the inside sites. It is cached, because creating it is slow."""
    shape, sites = task.shape, len(task.inside)
    with preserve_rng():
        return vgg11(shape, sites) if kind == "vgg11" else small(shape, sites, count_parameters(task.network()))


VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels of convolutions, 0 for pooling
VGG11_HIDDEN = 4096
SLOPE = 0.1  # of the small selector's LeakyReLU


def small(shape: Sequence[int], classes: int, parameters: int) -> nn.Module:
    """A network with about `parameters` parameters: four convolutions of stride 2, mean over space, a linear layer.

    `shape` is (C, *space), or (F,) for vectors, for which the network has one hidden layer. There is no normalisation,
    because the brightness and the contrast of an image indicate its site.
    """
    if len(shape) == 1:
        width = max(4, round(parameters / (shape[0] + classes + 1)))
        return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))
    width = 1
    while count_parameters(_convolutions(shape, classes, width + 1)) <= parameters:
        width += 1
    return _convolutions(shape, classes, width)


def vgg11(shape: Sequence[int], classes: int) -> nn.Module:
    """VGG-11 without normalisation (Simonyan, Zisserman, ICLR 2015), with as many dimensions as the examples.

    Pooling stops when a side of the image has size 1. Raises ConfigError for vectors.
    """
    dims = len(shape) - 1
    if dims < 1:
        raise ConfigError(f"vgg11 needs images, and examples have shape {tuple(shape)}; set algorithm.selector=small")
    layers, channels, size = list[nn.Module](), shape[0], min(shape[1:])
    for width in VGG11:
        if width:
            layers += [_conv(dims)(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        elif size > 1:
            layers.append((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2))
            size //= 2
    head = [nn.Linear(channels * 7**dims, VGG11_HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
    head += [nn.Linear(VGG11_HIDDEN, VGG11_HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, _pool(dims)(7), nn.Flatten(), *head, nn.Linear(VGG11_HIDDEN, classes))


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _convolutions(shape: Sequence[int], classes: int, width: int) -> nn.Module:
    dims, channels, layers = len(shape) - 1, shape[0], list[nn.Module]()
    for out_channels in (width, 2 * width, 4 * width, 8 * width):
        convolution = _conv(dims)(channels, out_channels, 3, stride=2, padding=1)
        # With torch's default, differences between images nearly vanish after four layers without normalisation.
        nn.init.kaiming_normal_(convolution.weight, SLOPE)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.LeakyReLU(SLOPE)]
        channels = out_channels
    return nn.Sequential(*layers, _pool(dims)(1), nn.Flatten(), nn.Linear(channels, classes))


def _conv(dims: int) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]


def _pool(dims: int) -> Any:
    return (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
