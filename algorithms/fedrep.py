"""FedRep, FedPer: the sites share a representation, and each site has its own head.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, Algorithm 1. https://arxiv.org/abs/2102.07078

    site k:  h_k <- head_epochs passes on F_k(phi, .)   then   phi_k <- epochs passes on F_k(., h_k)
    server:  phi <- sum_k (n_k / n) phi_k;  h_k stays at the site

`joint` is FedPer: (phi_k, h_k) <- epochs passes on F_k(., .), and the server as above. Arivazhagan, Aggarwal, Singh,
Choudhary, "Federated Learning with Personalization Layers", 2019, Algorithms 1 and 2. https://arxiv.org/abs/1912.00818

Our reading: the head is the network's last layer by default, see `head`. Sites are weighted by examples, as in FedPer;
Algorithm 1 of FedRep weights them equally. All heads start from the same weights, which are computed from the run's
seed. There is no global head, so no global model is evaluated. An outside site has no labels to train a head, so it has
no predictor. An inside site that was never sampled has no predictor either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training import head_layer, within

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
    joint: Annotated[
        bool, "whether a site trains its head and the other layers together, as in FedPer, without head_epochs"
    ] = False

    def init(self, task: Task) -> ServerState:
        net = task.network()
        model, _ = self.make_update(net)
        head = head_layer(net, task.shape, self.head)
        return ServerState(model.only(name for name in model if not within(name, head)))

    # at each site
    def client(self, site: Site[Model], broadcast: Model) -> Reply[Model]:
        local = weights(site.load()) if site.client_state is None else site.client_state
        net = self.load_global(site, local | broadcast)
        metrics = {"loss": self.fit(net, site)} if self.joint else self._fit_in_turn(net, site, broadcast)
        model = weights(net)
        client_state = model.only(model.keys() - broadcast.keys())
        return Reply(model.only(broadcast), weight=len(site.data.train), metrics=metrics, client_state=client_state)

    def _fit_in_turn(self, net: nn.Module, site: Site[Model], broadcast: Model) -> Metrics:
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        losses = {}
        for part, epochs in (("head_loss", self.head_epochs), ("loss", None)):
            for name, parameter in trained.items():
                parameter.requires_grad_((name in broadcast) == (part == "loss"))
            losses[part] = self.fit(net, site, epochs=epochs)
        return {part: losses[part] for part in ("loss", "head_loss")}

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state.shared))), {}

    def predictor(self, site: Site[Model], state: ServerState) -> Predictor | None:
        return None if site.client_state is None else site.predict_module(site.client_state | state.shared)
