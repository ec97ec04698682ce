"""FedRep: the sites share a representation, and each site has its own head, which is trained first in every round.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, Algorithm 1. https://arxiv.org/abs/2102.07078

    site k:  h_k <- head_epochs passes on F_k(phi, .)   then   phi_k <- epochs passes on F_k(., h_k)
    server:  phi <- sum_k (n_k / n) phi_k;  h_k stays at the site

Our reading: the head is the network's last layer by default, see `head`. All heads start from the same weights, which
are computed from the run's seed. There is no global head, so no global model is evaluated. An outside site has no
labels to train a head, so it has no predictor. An inside site that was never sampled has no predictor either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from raysim import ConfigError, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The shared representation phi."""

    shared: Model
    model: None = None


@dataclass(frozen=True, kw_only=True)
class FedRep(LocalTraining):
    head: Annotated[
        str | None, "name, or prefix of the names, of the layers that stay at the site; default: the last layer"
    ] = None
    head_epochs: Annotated[int, Gt(0), "epochs of training the head; `epochs` is for the other layers"] = 10

    def init(self, task: Task) -> ServerState:
        net = task.network()
        model, _ = self.make_update(net)
        head = last_layer(net, task.shape) if self.head is None else self.head
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        if not {name for name in trained if within(name, head)} or not {n for n in trained if not within(n, head)}:
            raise ConfigError(
                f"algorithm.head={head}: expected a name that matches some layers, but not all; layers of the network: "
                f"{', '.join(layers(net))}"
            )
        return ServerState(model.only(name for name in model if not within(name, head)))

    # at each site
    def client(self, site: Site[Model], broadcast: Model) -> Reply[Model]:
        local = weights(site.load()) if site.client_state is None else site.client_state
        net = self.load_global(site, local | broadcast)
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        losses = {}
        for part, epochs in (("head", self.head_epochs), ("body", None)):
            for name, parameter in trained.items():
                parameter.requires_grad_((name in broadcast) == (part == "body"))
            losses[part] = self.fit(net, site, epochs=epochs)
        model = weights(net)
        client_state = model.only(model.keys() - broadcast.keys())
        metrics = {"loss": losses["body"], "head_loss": losses["head"]}
        return Reply(model.only(broadcast), weight=len(site.data.train), metrics=metrics, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state.shared))), {}

    def predictor(self, site: Site[Model], state: ServerState) -> Predictor | None:
        return None if site.client_state is None else site.predict_module(site.client_state | state.shared)


def within(name: str, prefix: str) -> bool:
    """Whether `name` is `prefix` or is below it: fc.weight is below fc, but not below f."""
    return f"{name}.".startswith(f"{prefix}.")


def layers(net: nn.Module) -> list[str]:
    """The names of all layers with parameters, without those that only contain other layers."""
    return [name for name, layer in net.named_modules() if list(layer.parameters(recurse=False))]


def last_layer(net: nn.Module, shape: Sequence[int]) -> str:
    """The last layer, in order of `named_modules`, whose parameters affect the output for an example of `shape`.

    Raises ConfigError if no trained layer affects the output.
    """
    output = net.eval()(torch.zeros(1, *shape))
    while not isinstance(output, Tensor):
        output = output[0]  # the full resolution, if there are several
    for name in reversed(layers(net)):
        trained = [p for p in net.get_submodule(name).parameters(recurse=False) if p.requires_grad]
        if not trained:
            continue
        gradients = torch.autograd.grad(output.sum(), trained, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            return name
    raise ConfigError("fedrep: no trained layer affects the network's output, so no layer can be the head")
