"""FedBN: FedAvg without the normalisation layers, which stay at each site with their parameters and statistics.

Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021,
Algorithm 1. https://arxiv.org/abs/2102.07623

    w_k = (u_k, v_k), v_k the normalisation layers of site k        u <- sum_k (n_k / n) u_k,  v_k stays

Normalisation layers are batch, instance, group, layer and RMS norm. Our reading: the server has no v_k, so an outside
site and the global model use u with the first scales and shifts of the run and the statistics of each batch.
`outside=tent` adapts these scales and shifts to the site. Sites are weighted by examples; in the paper, equally.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training import norm_layers

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The shared weights u, and the first parameters of the normalisation layers."""

    shared: Model
    start: Model

    @property
    def model(self) -> Model:
        """The global model without running statistics: it normalises each batch by the statistics of that batch."""
        return self.shared | self.start


@dataclass(frozen=True, kw_only=True)
class FedBN(LocalTraining):
    def init(self, task: Task) -> ServerState:
        net = task.network()
        model, _ = self.make_update(net)
        local = norm_names(model, net)
        return ServerState(model.only(model.keys() - local), model.parameters.only(local & model.parameters.keys()))

    # at each site
    def client(self, site: Site[Model], broadcast: Model) -> Reply[Model]:
        local = weights(site.load()) if site.client_state is None else site.client_state
        net = self.load_global(site, local | broadcast)
        loss = self.fit(net, site)
        trained, (update, _) = weights(net), self.make_update(net)
        sent = update.keys() - norm_names(update, net)
        client_state = trained.only(trained.keys() - sent)
        return Reply(update.only(sent), weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state.shared)), state.start), {}

    def predictor(self, site: Site[Model], state: ServerState) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, state.model)
        return site.predict_module(site.client_state | state.shared)


def norm_names(model: Model, net: nn.Module) -> set[str]:
    """The names in `model` that belong to normalisation layers of `net`."""
    layers = norm_layers(net)
    return {name for name in model if name.rpartition(".")[0] in layers}
