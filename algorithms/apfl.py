"""APFL: each inside site predicts with a mixture of the global and a personal model, whose weight it learns.

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, Algorithm 1. https://arxiv.org/abs/2003.13461

    mixture  m_k = alpha_k v_k + (1 - alpha_k) w_k;  each step of site k, on one batch:
    w_k <- w_k - lr grad F_k(w_k)                         v_k <- v_k - lr alpha_k grad F_k(m_k)
    alpha_k <- clip(alpha_k - alpha_lr <grad F_k(m_k), v_k - w_k>, 0, 1)
    server:  w <- sum_k (n_k / n) w_k;  v_k and alpha_k stay at the site

w is that of FedAvg up to rounding, except with `clip` and dropout: the norm is that of both gradients, and the networks
share the random numbers. v_k starts from the first global model that the site receives. Our reading: alpha_k has its
own step size, since lr may be that of Adam; inside sites predict with v_k and the new global w; m_k has its own running
statistics. Means are weighted by examples. Outside sites, and sites that were never sampled, predict with w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.func import functional_call

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean, weights

GROUP = "personal"


@dataclass(frozen=True)
class ClientState:
    """The personal model v_k with the buffers of the mixture, its weight alpha_k, and the buffers of w if local."""

    personal: Model
    alpha: float
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class APFL(LocalTraining):
    can_compile = False  # its training loop is not `fit`

    alpha: Annotated[float, Ge(0), Le(1), "first weight of the personal model in the mixture of each site"] = 0.5
    alpha_lr: Annotated[float, Ge(0), "step size of the weight; 0 keeps it at `alpha`"] = 0.1

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        net, before = self.load_global(site, model), site.client_state
        start = weights(net) if before is None else before.personal
        personal_net = self.load_global(replace(site, client_state=None), start)  # v_k includes its buffers
        alpha = torch.tensor(self.alpha if before is None else before.alpha, device=site.device)
        both, personal_losses = nn.ModuleList([net, personal_net]), list[Tensor]()
        total = self.optimize(both, site, self.losses(net, personal_net, alpha, site, personal_losses))
        update, buffers = self.make_update(net)
        personal_loss = torch.stack(personal_losses).double().mean().item()
        return Reply(
            update,
            weight=len(site.data.train),
            metrics={"loss": total - personal_loss, "personal_loss": personal_loss, "alpha": alpha.item()},
            client_state=ClientState(weights(personal_net), alpha.item(), None if buffers is UNCHANGED else buffers),
        )

    def losses(
        self, net: nn.Module, personal_net: nn.Module, alpha: Tensor, site: Site[ClientState], personal: list[Tensor]
    ) -> Iterator[Tensor]:
        """Yields the sum of both losses of each step; appends that of the mixture to `personal`; updates `alpha`."""
        for inputs, labels in self.training_batches(site):
            alpha.requires_grad_(self.alpha_lr > 0).grad = None
            pairs = zip(net.named_parameters(), personal_net.parameters(), strict=True)
            mixture = {name: torch.lerp(w.detach(), v, alpha.to(v.dtype)) for (name, w), v in pairs}
            with self.precision(site):
                loss = site.task.loss(net(inputs), labels)
                personal.append(site.task.loss(functional_call(personal_net, mixture, (inputs,)), labels))
            yield loss + personal[-1]
            personal[-1] = personal[-1].detach()
            alpha.requires_grad_(False)
            if alpha.grad is not None:
                alpha.sub_(alpha.grad, alpha=self.alpha_lr).clamp_(0, 1)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[ClientState], model: Model) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, model)
        personal, alpha = site.client_state.personal, site.client_state.alpha
        mixture = combine([personal.parameters, model.parameters], [alpha, 1 - alpha])
        return site.predict_module(personal | mixture)
