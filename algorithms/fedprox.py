"""FedProx: FedAvg with a proximal term that keeps each site's model near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
Algorithm 2. https://arxiv.org/abs/1812.06127

    site k minimises  F_k(w) + mu/2 ||w - w^t||^2,  which adds  mu (w - w^t)  to the gradient of each step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import nn

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean
from raysim.training import GradientCorrection, copy_trained, proximal_term

GROUP = "global"


@dataclass(frozen=True, kw_only=True)
class FedProx(LocalTraining):
    mu: Annotated[float, Ge(0), "weight of the proximal term; 0 is FedAvg"] = 0.01

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site, correct=pull_to_start(net, self.mu))
        update, client_state = self.make_update(net)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


def pull_to_start(net: nn.Module, mu: float) -> GradientCorrection:
    """Adds `mu (w - w0)` to the gradients, where w0 are the current parameters of `net`."""
    return proximal_term(copy_trained(net), mu)
