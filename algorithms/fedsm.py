"""FedSM with SoftPull: a global model, one for each site, and a selector that sends every image to one of them.

Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the Generalization Gap of Cross-silo Federated
Medical Image Segmentation", CVPR 2022, https://arxiv.org/abs/2203.10144, as its authors' code has it.

    at site k: w_k from the global w, then v_k from the personal w_p^k, then s_k from the selector s, which learns to
    name the site (all its images have the label k), one Adam step for a pass over all
    w <- sum_k n_k/n w_k, likewise s and the moments of its Adam
    SoftPull: w_p^k <- pull v_k + (1 - pull)/(K-1) sum_(j != k) v_j
                    = v + mu (v_k - v)  with the plain mean v and mu = (K pull - 1)/(K-1)
    an image x goes to w_p^k with k = argmax softmax(s(x)) if that is above `threshold`, else to w
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

from raysim import UNCHANGED, ConfigError, Fleet, LocalTraining, Metrics, Model, PredictionSet, Reply, Site, Split, Task
from raysim.core.aggregation import combine, mean
from raysim.core.model import load, weights
from raysim.core.network_outputs import full_resolution
from raysim.core.seeding import preserve_rng
from raysim.training.local_training import OptimizerState, dump_optimizer_state, load_optimizer_state


@dataclass(frozen=True)
class ServerState:
    """What the server knows: the plain global model, each site's own, the selector, and the moments of its Adam."""

    model: Model
    personal: Mapping[str, Model]
    selector: Model
    moments: Model | None = None


@dataclass(frozen=True)
class Update:
    """What a site sends."""

    model: Model
    personal: Model
    selector: Model
    moments: Model | None


@dataclass(frozen=True)
class ClientState:
    """What stays at a site: its buffers, where they are local, and the moments of its optimisers."""

    buffers: Model | None = None
    model: OptimizerState = field(default_factory=dict)
    personal: OptimizerState = field(default_factory=dict)
    selector: Model | None = None


@dataclass(frozen=True, kw_only=True)
class FedSM(LocalTraining):
    pull: Annotated[float, Gt(0), Le(1), "what a personal model keeps of its site's; 1 / sites is the plain mean"] = 0.7
    threshold: Annotated[float, Ge(0), Le(1), "confidence above which an image goes to a personal model"] = 0.9
    selector: Annotated[Literal["small", "vgg11"], "selector; the small one is of about the network's size"] = "small"
    selector_lr: Annotated[float, Gt(0), "learning rate of the selector's Adam"] = 1e-3
    selector_epochs: Annotated[int, Gt(0), "steps of the selector in a round, each over all the site's images"] = 1
    average_moments: Annotated[bool, "whether the moments of the selector's Adam are averaged too"] = True
    keep_moments: Annotated[bool, "whether the optimisers of the other two models go on from round to round"] = True

    def init(self, task: Task) -> ServerState:
        if len(task.inside) > 1 and self.pull * len(task.inside) < 1 - 1e-6:
            least = f"{1 / len(task.inside):g} (the plain mean of {len(task.inside)} inside sites)"
            raise ConfigError(f"algorithm.pull is {self.pull:g}: expected {least} to 1; less would pass the mean")
        model = self.make_update(net := task.network())[0]
        selector = weights(selector_of.__wrapped__(task, self.selector))
        return ServerState(model, dict.fromkeys(task.inside, weights(net)), selector)

    # at each site
    def client(self, site: Site[ClientState], shared: tuple[Model, Model, Model | None], own: Model) -> Reply[Update]:
        (model, selector, moments), before = shared, site.client_state or ClientState()
        of_model, of_personal = (dict(kept) for kept in (before.model, before.personal))
        net = self.load_global(site, model)
        # Before the other two: it draws the random numbers that FedAvg would draw.
        said = {"loss": self.fit(net, site, optimizer_state=of_model if self.keep_moments else None)}
        sent, buffers = self.make_update(net)
        personal = site.load(own)
        said["personal_loss"] = self.fit(personal, site, optimizer_state=of_personal if self.keep_moments else None)
        selector, moments, told = self._name(site, selector, moments if self.average_moments else before.selector)
        payload = Update(sent, weights(personal), selector, moments if self.average_moments else None)
        buffers = before.buffers if buffers is UNCHANGED else buffers
        client_state = ClientState(buffers, of_model, of_personal, None if self.average_moments else moments)
        return Reply(payload, weight=len(site.data.train), metrics=said | told, client_state=client_state)

    def _name(self, site: Site[Any], selector: Model, moments: Model | None) -> tuple[Model, Model, Metrics]:
        """The selector after its steps towards this site's name, its moments, and how well it knew the site before."""
        net = self._selector(site, selector).train()
        load_optimizer_state(optimizer := torch.optim.Adam(net.parameters(), self.selector_lr), moments)
        label, count, losses, right = site.task.inside.index(site.name), len(site.data.train), list[float](), 0.0
        for epoch in range(self.selector_epochs):
            optimizer.zero_grad()
            losses.append(0.0)
            for inputs in images(site.data.train, site):
                names = torch.full((len(inputs),), label, device=site.device)
                loss = nn.functional.cross_entropy(logits := net(inputs), names, reduction="sum")
                (loss / count).backward()
                losses[-1] += loss.item() / count
                right += float((logits.argmax(1) == label).sum()) if epoch == 0 else 0.0
            optimizer.step()
        optimizer.zero_grad()
        told = {"selector_loss": losses[0], "selector_accuracy": right / count}
        return weights(net), Model.of(dump_optimizer_state(optimizer)), told

    def _selector(self, site: Site[Any], model: Model) -> nn.Module:
        load(net := selector_of(site.task, self.selector).to(site.device), model)
        return net

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        shared = (state.model, state.selector, state.moments)
        replies = fleet.map(self.client, shared, {site: state.personal[site] for site in fleet.sites})
        pulled = softpull({site: reply.payload.personal for site, reply in replies.items()}, self.pull)
        model, selector = (mean(replies, attrgetter(name)) for name in ("model", "selector"))
        moments = mean(replies, attrgetter("moments")) if self.average_moments else None
        return ServerState(model, {**state.personal, **pulled}, selector, moments), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> PredictionSet:
        personal, plain = [state.personal[s] for s in site.task.inside], self.predict_module(site, state.model)
        selector = deepcopy(self._selector(site, state.selector)).eval()
        routed = Routed(selector, personal, plain, site.predict_module(personal[0]), self.threshold)
        own = site.task.inside.index(site.name) if site.name in site.task.inside else None
        others = {} if own is None else {"personal": site.predict_module(personal[own])}
        return PredictionSet(routed, others, lambda split: routed.shares(split, site, own))


@dataclass(frozen=True)
class Routed:
    """The super model: every image of a batch goes its own way."""

    selector: nn.Module
    personal: Sequence[Model]
    plain: nn.Module
    spare: nn.Module  # takes the weights of one personal model after the other
    threshold: float

    def ways(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """For each image the site that the selector names, and whose model it goes to: -1 is the global one's."""
        confidence, named = self.selector(inputs).softmax(1).max(1)
        return named, torch.where(confidence > self.threshold, named, -1)

    def __call__(self, inputs: Tensor) -> Tensor:
        ways, parts, order = self.ways(inputs)[1], list[Tensor](), list[Tensor]()
        for way in ways.unique().tolist():
            order.append((ways == way).nonzero()[:, 0])
            if way < 0:  # the whole batch: the global model may look at the statistics of all of it
                parts.append(full_resolution(self.plain(inputs), inputs.ndim)[order[-1]])
            else:
                load(self.spare, self.personal[way])
                parts.append(full_resolution(self.spare(inputs[order[-1]]), inputs.ndim))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def shares(self, split: Split, site: Site[Any], own: int | None) -> Metrics:
        """Where the images go, and how often the selector is right where there is a right answer."""
        found = [self.ways(inputs) for inputs in images(split, site)]
        named, ways = (torch.cat(part).cpu().numpy() for part in zip(*found, strict=True))
        shares = {"routed_global": (ways < 0).mean(), "routed_other": ((ways >= 0) & (ways != own)).mean()}
        if own is not None:
            shares |= {"routed_own": (ways == own).mean(), "selector_accuracy": (named == own).mean()}
        return {name: float(share) for name, share in shares.items()}


def softpull(models: Mapping[str, Model], pull: float) -> dict[str, Model]:
    """v + mu (v_k - v) with the plain mean v: each deviation shrinks by mu = (K pull - 1) / (K - 1).

    Of fewer than 1/pull models none is pushed past the mean. Counters stay each site's own.
    """
    count = len(models)
    if count == 1 or pull == 1:
        return dict(models)
    mu, middle = max(0.0, (count * pull - 1) / (count - 1)), combine(models.values(), [1 / count] * count)
    exact = [name for name in middle if middle[name].dtype.kind == "f"]
    return {site: model | combine([middle, model], [1 - mu, mu]).only(exact) for site, model in models.items()}


def images(split: Split, site: Site[Any]) -> Iterator[Tensor]:
    """All inputs in their order, in batches."""
    for start in range(0, len(split), site.task.batch_size):
        yield torch.from_numpy(split.inputs[start : start + site.task.batch_size].copy()).to(site.device)


@lru_cache(maxsize=4)
def selector_of(task: Task, kind: str) -> nn.Module:
    """A new selector among the inside sites; at a site it is kept, for it takes long to make."""
    shape, sites = task.shape, len(task.inside)
    with preserve_rng():
        return vgg11(shape, sites) if kind == "vgg11" else small(shape, sites, counted(task.network()))


VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels of convolutions, 0 for pooling
WIDE = 4096
SLOPE = 0.1  # of the small one, where its units are off


def small(shape: Sequence[int], classes: int, parameters: int) -> nn.Module:
    """About so many `parameters`: four convolutions of stride 2 and a linear layer on the mean over space.

    `shape` is (C, *space), or (F,) for vectors, which get one hidden layer. Nothing is normalised: the brightness and
    the contrast of an image tell where it comes from.
    """
    if len(shape) == 1:
        width = max(4, round(parameters / (shape[0] + classes + 1)))
        return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))
    width = 1
    while counted(_convolutions(shape, classes, width + 1)) <= parameters:
        width += 1
    return _convolutions(shape, classes, width)


def vgg11(shape: Sequence[int], classes: int) -> nn.Module:
    """VGG-11 without normalisation (Simonyan, Zisserman, ICLR 2015), in as many dimensions as the examples have.

    Space is halved as long as there is any. Raises ConfigError for vectors.
    """
    dims = len(shape) - 1
    if dims < 1:
        raise ConfigError(f"VGG-11 looks at images, and examples here are of the shape {tuple(shape)}: take 'small'")
    layers, channels, size = list[nn.Module](), shape[0], min(shape[1:])
    for wide in VGG11:
        if wide:
            layers += [_conv(dims)(channels, wide, 3, padding=1), nn.ReLU(inplace=True)]
            channels = wide
        elif size > 1:
            layers.append((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2))
            size //= 2
    head = [nn.Linear(channels * 7**dims, WIDE), nn.ReLU(inplace=True), nn.Dropout()]
    head += [nn.Linear(WIDE, WIDE), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(WIDE, classes)]
    return nn.Sequential(*layers, _pool(dims)(7), nn.Flatten(), *head)


def counted(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def _convolutions(shape: Sequence[int], classes: int, width: int) -> nn.Module:
    dims, channels, layers = len(shape) - 1, shape[0], list[nn.Module]()
    for wide in (width, 2 * width, 4 * width, 8 * width):
        convolution = _conv(dims)(channels, wide, 3, stride=2, padding=1)
        # As torch makes it, what differs between images has all but gone after four layers without normalisation.
        nn.init.kaiming_normal_(convolution.weight, SLOPE)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.LeakyReLU(SLOPE)]
        channels = wide
    return nn.Sequential(*layers, _pool(dims)(1), nn.Flatten(), nn.Linear(channels, classes))


def _conv(dims: int) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]


def _pool(dims: int) -> Any:
    return (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
