"""FedProx: FedAvg with a proximal term that holds each site's model near the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
Algorithm 2. https://arxiv.org/abs/1812.06127

    site k minimises  F_k(w) + mu/2 ||w - w^t||^2,  so that each step's gradient gains  mu (w - w^t)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import nn

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean
from raysim.training.local_training import Correction, pull_to


@dataclass(frozen=True, kw_only=True)
class FedProx(LocalTraining):
    mu: Annotated[float, Ge(0), "weight of the proximal term; 0 is FedAvg"] = 0.01

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site, correct=pull_to_start(net, self.mu))
        sent, kept = self.make_update(net)
        return Reply(sent, weight=len(site.data.train), metrics={"loss": loss}, client_state=kept)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


def pull_to_start(net: nn.Module, mu: float) -> Correction:
    """Adds `mu (w - w0)` to the gradients, w0 being the parameters of `net` now."""
    return pull_to([p.detach().clone() for p in net.parameters() if p.requires_grad], mu)
