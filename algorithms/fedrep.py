"""FedRep: the sites share a representation, and each has a head of its own, trained first in every round.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, Algorithm 1. https://arxiv.org/abs/2102.07078

    site k:  h_k <- head_epochs passes on F_k(phi, .)   then   phi_k <- epochs passes on F_k(., h_k)
    server:  phi <- sum_k (n_k / n) phi_k;  h_k stays at the site

Our reading: the head is the network's last layer where `head` names no other; a site's head starts from the weights
that the run's seed gives. There is no global head: no plain global model is judged, and an outside site, which has
no labels to train a head with, gets no answer, nor does an inside site that has never been asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from raysim import ConfigError, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights


@dataclass(frozen=True)
class ServerState:
    """The shared representation phi."""

    shared: Model
    model: None = None


@dataclass(frozen=True, kw_only=True)
class FedRep(LocalTraining):
    head: Annotated[
        str | None, "name of the layers that stay at the site, or its beginning; the last layer where not given"
    ] = None
    head_epochs: Annotated[int, Gt(0), "passes over the training data that train the head; `epochs` the rest"] = 10

    def init(self, task: Task) -> ServerState:
        net = task.network()
        sent, _ = self.make_update(net)
        name = last_layer(net, task.shape) if self.head is None else self.head
        free = {n for n, parameter in net.named_parameters() if parameter.requires_grad}
        if not {n for n in free if within(n, name)} or not {n for n in free if not within(n, name)}:
            raise ConfigError(
                f"algorithm.head={name}: expected the name of some layers, not of all or none; the network has "
                f"{', '.join(layers(net))}"
            )
        return ServerState(sent.only(n for n in sent if not within(n, name)))

    # at each site
    def client(self, site: Site[Model], shared: Model) -> Reply[Model]:
        own = weights(site.load()) if site.client_state is None else site.client_state
        net = self.load_global(site, own | shared)
        free = {name: p for name, p in net.named_parameters() if p.requires_grad}
        losses = {}
        for part, epochs in (("head", self.head_epochs), ("body", None)):
            for name, parameter in free.items():
                parameter.requires_grad_((name in shared) == (part == "body"))
            losses[part] = self.fit(net, site, epochs=epochs)
        everything = weights(net)
        kept = everything.only(everything.keys() - shared.keys())
        said = {"loss": losses["body"], "head_loss": losses["head"]}
        return Reply(everything.only(shared), weight=len(site.data.train), metrics=said, client_state=kept)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state.shared))), {}

    def predictor(self, site: Site[Model], state: ServerState) -> Predictor | None:
        return None if site.client_state is None else site.predict_module(site.client_state | state.shared)


def within(name: str, prefix: str) -> bool:
    """Whether `name` is `prefix` or lies under it: fc.weight lies under fc and not under f."""
    return f"{name}.".startswith(f"{prefix}.")


def layers(net: nn.Module) -> list[str]:
    """The names of all layers with parameters of their own."""
    return [name for name, layer in net.named_modules() if list(layer.parameters(recurse=False))]


def last_layer(net: nn.Module, shape: Sequence[int]) -> str:
    """The last layer, in order of `named_modules`, on whose parameters the output for an example of `shape` depends."""
    output = net.eval()(torch.zeros(1, *shape))
    while not isinstance(output, Tensor):
        output = output[0]  # of several resolutions the full one
    for name in reversed(layers(net)):
        own = [p for p in net.get_submodule(name).parameters(recurse=False) if p.requires_grad]
        gradients = torch.autograd.grad(output.sum(), own, retain_graph=True, allow_unused=True) if own else ()
        if any(gradient is not None for gradient in gradients):
            return name
    raise ConfigError("fedrep: the network's output depends on no layer that is trained, so none can be the head")
