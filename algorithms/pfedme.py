"""pFedMe: the sites train the global model on the Moreau envelopes of their losses; the minimisers are personal models.

Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, Algorithm 1.
https://arxiv.org/abs/2006.08848

    site k, for each batch:  theta_k ~ argmin F_k(theta) + lam/2 ||theta - w_k||^2,  by inner_steps steps from theta_k
                             w_k <- w_k - outer_lr lam (w_k - theta_k)
    server:  w <- (1 - server_lr) w + server_lr sum_k (n_k / n) w_k;  theta_k stays at the site

theta_k and w_k start from w in every round. Our reading: theta_k continues from batch to batch, as in the authors'
code; sites are weighted by examples, in the paper equally. w has the running statistics of the theta_k. Inside sites
predict with theta_k. Outside sites, and inside sites that were never sampled, predict with w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from raysim import (
    UNCHANGED,
    ConfigError,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    Predictor,
    Reply,
    Site,
    Task,
    combine,
    mean,
    weights,
)
from raysim.training import copy_trained, proximal_term

GROUP = "personal"


@dataclass(frozen=True)
class ClientState:
    """The personal model theta_k with its buffers, and the buffers of the global model if they are local."""

    personal: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class PFedMe(LocalTraining):
    can_compile = False  # its training loop is not `fit`

    lam: Annotated[float, Gt(0), "lambda: weight of the term that pulls the personal to the global model"] = 15.0
    inner_steps: Annotated[int, Gt(0), "steps of the personal model for each batch"] = 5
    outer_lr: Annotated[float, Gt(0), "step size of the global model at a site; at most 1 / lam"] = 0.05
    server_lr: Annotated[float, Gt(0), "beta: 1 gives the mean of the sites' models"] = 1.0

    def __post_init__(self) -> None:
        if self.outer_lr * self.lam > 1:
            raise ConfigError(
                f"pfedme: algorithm.outer_lr={self.outer_lr:g} with algorithm.lam={self.lam:g}: expected a product of "
                "at most 1, because with more a step passes the personal model; set "
                f"algorithm.outer_lr={0.99 / self.lam:.3g} or less"
            )

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        w = copy_trained(net)
        loss = self.optimize(net, site, self.losses(net, w, site), correct=proximal_term(w, self.lam))
        personal = weights(net)
        write_parameters(net, w)
        update, buffers = self.make_update(net)
        client_state = ClientState(personal, None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    def losses(self, net: nn.Module, w: list[Tensor], site: Site[ClientState]) -> Iterator[Tensor]:
        """Yields the loss of each inner step; moves `w` in place after the last inner step of each batch."""
        for inputs, labels in self.training_batches(site):
            for _ in range(self.inner_steps):
                with self.precision(site):
                    loss = site.task.loss(net(inputs), labels)
                yield loss
            with torch.no_grad():
                for anchor, theta in zip(w, (p for p in net.parameters() if p.requires_grad), strict=True):
                    anchor.lerp_(theta, self.outer_lr * self.lam)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        average = mean(fleet.map(self.client, model))
        moved = combine([model.parameters, average.parameters], [1 - self.server_lr, self.server_lr])
        return average | moved, {}

    def predictor(self, site: Site[ClientState], model: Model) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, model)
        return site.predict_module(site.client_state.personal)


@torch.no_grad()
def write_parameters(net: nn.Module, values: list[Tensor]) -> None:
    """Copy `values` to the parameters of `net` that are trained."""
    for parameter, value in zip((p for p in net.parameters() if p.requires_grad), values, strict=True):
        parameter.copy_(value)
