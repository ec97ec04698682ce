"""FedAvg: every site trains the global model on its own data; the server computes the weighted mean.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, Algorithm 1. https://arxiv.org/abs/1602.05629

    w_k = w after local training on the n_k examples of site k        w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean

GROUP = "global"


@dataclass(frozen=True, kw_only=True)
class FedAvg(LocalTraining):
    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, client_state = self.make_update(net)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)
