"""Ditto: beside FedAvg's global model, each site trains a model of its own that is held near the global one.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, Algorithm 1.
https://arxiv.org/abs/2012.04221

    w: as in FedAvg        v_k minimises  F_k(v) + lam/2 ||v - w||^2,  so that each step's gradient gains  lam (v - w)

w is the global model that came down in this round. v_k starts from the first one that comes, never leaves the site, and
is trained after the site's part of w in the same call: w is FedAvg's to the bit, whatever `lam`. With lam = 0, v_k
is trained alone. Inside sites answer with v_k; outside ones, and those that have not been asked yet, with w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training.local_training import pull_to


@dataclass(frozen=True)
class ClientState:
    """The site's own model v_k, with its buffers; those of the global model, where they stay at the site."""

    personal: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class Ditto(LocalTraining):
    lam: Annotated[float, Ge(0), "lambda: pull of the personal model to the global one; 0 trains it alone"] = 0.1
    personal_epochs: Annotated[
        int | None, Gt(0), "passes of the personal model in a round; as many as the global one's where not given"
    ] = None

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        given = weights(net) if site.client_state is None else site.client_state.personal
        w = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        loss = self.fit(net, site)
        sent, kept = self.make_update(net)
        mine = self.load_global(replace(site, client_state=None), given)  # v_k brings buffers of its own
        own_loss = self.fit(mine, site, correct=pull_to(w, self.lam), epochs=self.personal_epochs)
        return Reply(
            sent,
            weight=len(site.data.train),
            metrics={"loss": loss, "personal_loss": own_loss},
            client_state=ClientState(weights(mine), None if kept is UNCHANGED else kept),
        )

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[ClientState], model: Model) -> Predictor:
        return (
            self.predict_module(site, model)
            if site.client_state is None
            else site.predict_module(site.client_state.personal)
        )
