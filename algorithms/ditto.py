"""Ditto: FedAvg, and at each site also a personal model that is regularised towards the global model.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, Algorithm 1.
https://arxiv.org/abs/2012.04221

    w: as in FedAvg        v_k minimises  F_k(v) + lam/2 ||v - w||^2,  which adds  lam (v - w)  to each gradient

w is the global model that the site receives in this round. v_k starts from the first global model that the site
receives, and never leaves the site. It is trained after the site's update of w in the same call, so w is bit-identical
to FedAvg for every `lam`. With lam = 0, v_k is trained only locally. Inside sites predict with v_k. Outside sites, and
inside sites that were never sampled, predict with w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Le

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training import copy_trained, proximal_term, relative_distance

GROUP = "personal"


@dataclass(frozen=True)
class ClientState:
    """The personal model v_k with its buffers, and the buffers of the global model if they are local."""

    personal: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class Ditto(LocalTraining):
    lam: Annotated[float, Ge(0), "lambda: weight of the term that pulls the personal model to the global model"] = 0.1
    personal_epochs: Annotated[
        int | None, Gt(0), "epochs of the personal model per round; default: as for the global model"
    ] = None
    lr_floor: Annotated[float, Ge(0), Le(1), "lowest learning rate of the schedule, as a fraction of lr"] = 0.1

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    def check_rounds(self, rounds: int) -> None:
        """Warns if the schedule ends with a rate at which personal models are no longer renewed."""
        self.warn_of_small_rate(rounds)

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        personal = weights(net) if site.client_state is None else site.client_state.personal
        w = copy_trained(net)
        loss = self.fit(net, site)
        update, buffers = self.make_update(net)
        personal_net = self.load_global(replace(site, client_state=None), personal)  # v_k includes its buffers
        personal_loss = self.fit(personal_net, site, correct=proximal_term(w, self.lam), epochs=self.personal_epochs)
        personal = weights(personal_net)
        distance = relative_distance(personal, model)
        return Reply(
            update,
            weight=len(site.data.train),
            metrics={"loss": loss, "personal_loss": personal_loss, "personal_distance": distance},
            client_state=ClientState(personal, None if buffers is UNCHANGED else buffers),
        )

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[ClientState], model: Model) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, model)
        return site.predict_module(site.client_state.personal)
