"""MOON: a contrastive term pulls the site's features to those of the global model, away from those of its last model.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, Algorithm 1. https://arxiv.org/abs/2103.16257

    site k minimises  F_k(w) + mu mean_x l(x)
    l(x) = -log exp(s(z, z_glob) / tau) / (exp(s(z, z_glob) / tau) + exp(s(z, z_prev) / tau))
    z, z_glob, z_prev: features of x by w, by the global model w^t and by the site's model after its last round

s is the cosine. Our reading: the features are the whole input of the network's head, which is its last layer by
default; the paper adds a projection head to the network. In the site's first round z_prev = z_glob, so the term has no
gradient. The two fixed models have no dropout, and their layers with running statistics use those of the batch, as the
trained network does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training import head_layer, use_batch_statistics

GROUP = "global"


@dataclass(frozen=True)
class ServerState:
    """The global model, and the name of the layer whose input is the features."""

    model: Model
    head: str


@dataclass(frozen=True)
class ClientState:
    """The parameters of the site's model after its last round, and its buffers if they are local."""

    previous: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class MOON(LocalTraining):
    can_compile = False  # its training loop is not `fit`

    mu: Annotated[float, Ge(0), "weight of the contrastive term; 0 is FedAvg"] = 1.0
    temperature: Annotated[float, Gt(0), "tau: divisor of the similarities"] = 0.5
    head: Annotated[str | None, "layer or block of layers whose input is the features; default: the last layer"] = None

    def init(self, task: Task) -> ServerState:
        net = task.network()
        head = head_layer(net, task.shape, self.head)
        is_layer = head in dict(net.named_modules())  # otherwise a parameter
        return ServerState(self.make_update(net)[0], head if is_layer else head.rpartition(".")[0])

    # at each site
    def client(self, site: Site[ClientState], broadcast: ServerState) -> Reply[Model]:
        net = self.load_global(site, broadcast.model)
        previous = broadcast.model if site.client_state is None else site.client_state.previous
        fixed = [FeatureExtractor(fixed_network(site, model), broadcast.head) for model in (broadcast.model, previous)]
        loss = self.optimize(net, site, self._losses(FeatureExtractor(net, broadcast.head), fixed, site))
        update, buffers = self.make_update(net)
        client_state = ClientState(weights(net).parameters, None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    def _losses(
        self, trained: FeatureExtractor, fixed: list[FeatureExtractor], site: Site[ClientState]
    ) -> Iterator[Tensor]:
        for inputs, labels in self.training_batches(site):
            with self.precision(site):
                outputs, features = trained(inputs)
                with torch.no_grad():
                    anchors = [extractor(inputs)[1] for extractor in fixed]
                loss = site.task.loss(outputs, labels)
            yield loss + self.mu * contrast(features, anchors, self.temperature)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state)), state.head), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)


class FeatureExtractor:
    """The outputs of a network, and the input of one of its layers as features (B, F)."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        self.net, self.features = net, torch.empty(0)
        net.get_submodule(layer).register_forward_pre_hook(self._record)

    def _record(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.features = arguments[0].flatten(1)

    def __call__(self, inputs: Tensor) -> tuple[Any, Tensor]:
        return self.net(inputs), self.features


def fixed_network(site: Site[Any], model: Model) -> nn.Module:
    """A network with `model` that is not trained and normalises each batch by the statistics of that batch."""
    net = site.load(model).eval().requires_grad_(False)
    use_batch_statistics(net)
    return net


def contrast(features: Tensor, anchors: list[Tensor], temperature: float) -> Tensor:
    """The mean over the batch of l, from `features` z and `anchors` z_glob, z_prev, each (B, F)."""
    similarities = [cosine_similarity(features.float(), anchor.float()) for anchor in anchors]
    logits = torch.stack(similarities, 1) / temperature
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
