"""FedDG-GA: FedAvg whose weights grow for sites where the global model is worse than the site's own model.

Zhang, Xu, Yao, Zhang, Tian, Wang, "Federated Domain Generalization with Generalization Adjustment", CVPR 2023,
Algorithm 1.
https://openaccess.thecvf.com/content/CVPR2023/html/Zhang_Federated_Domain_Generalization_With_Generalization_Adjustment_CVPR_2023_paper.html

    gap of site k:  G_k = F_k(w) - F_k(w_k),  w the received global model, w_k the site's model after its last round
    a_k <- a_k + (1 - t/T) (step/N) (G_k - mean G) / max_j |G_j - mean G|,  clipped to [0, 1], then  a <- a / sum a
    w <- sum_k a_k w_k,  with a_k = 1/N at first

The gaps of a round are measured before its training and change the weights of its aggregation. Our reading: F_k is the
mean loss of the training images in batches, without augmentation and in evaluation mode; the authors' code uses
validation images, and does not subtract mean G. step/N is the code's step. A site that is not sampled keeps its a_k; w
is the mean over the cohort with the weights a_k / sum a. If all sites of the cohort have a_k = 0, they count equally.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Annotated

import torch
from annotated_types import Ge
from torch import nn

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean
from raysim.training import batches

GROUP = "domain generalisation"


@dataclass(frozen=True)
class ServerState:
    """The global model, and the weight a_k of each inside site; the weights add up to 1."""

    model: Model
    shares: Mapping[str, float]
    rounds: int = 0  # finished


@dataclass(frozen=True)
class ClientState:
    """F_k(w_k), the loss of the site's model after its last round, and its buffers if they are local."""

    loss: float
    buffers: Model | None


@dataclass(frozen=True)
class Update:
    """The site's model, and its gap G_k; None in its first round."""

    model: Model
    gap: float | None


@dataclass(frozen=True, kw_only=True)
class FedDGGA(LocalTraining):
    uses_rounds = "the change of the weights decreases to 0 in the last round"

    step: Annotated[float, Ge(0), "largest change of a weight in the first round, as a fraction of 1/N"] = 0.2

    def init(self, task: Task) -> ServerState:
        shares = dict.fromkeys(task.inside, 1 / len(task.inside))
        return ServerState(self.make_update(task.network())[0], shares)

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Update]:
        net, before = self.load_global(site, model), site.client_state
        gap = None if before is None else self.evaluate(net, site) - before.loss
        site.rewind()  # the batches must not depend on the evaluation
        loss = self.fit(net, site)
        update, buffers = self.make_update(net)
        client_state = ClientState(self.evaluate(net, site), None if buffers is UNCHANGED else buffers)
        metrics = {"loss": loss} if gap is None else {"loss": loss, "gap": gap}
        return Reply(Update(update, gap), len(site.data.train), metrics, client_state)

    @torch.no_grad()
    def evaluate(self, net: nn.Module, site: Site[ClientState]) -> float:
        """The mean loss of `net` over the training images. The network is in evaluation mode afterwards."""
        net.eval()
        split, batch, total = site.data.train, min(site.task.batch_size, len(site.data.train)), 0.0
        for inputs, labels in batches(split, batch, self.count_steps(split, batch, epochs=1), site.device):
            with self.precision(site):
                total += site.task.loss(net(inputs), labels).item() * len(inputs)
        return total / len(split)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, state.model)
        gaps = {site: gap for site, reply in replies.items() if (gap := reply.payload.gap) is not None}
        step = self.step * (1 - state.rounds / fleet.rounds) / len(state.shares)
        shares = adjusted(state.shares, gaps, step)
        total = sum(shares[site] for site in replies)
        weighted = {site: replace(r, weight=shares[site] if total else 1.0) for site, r in replies.items()}
        model = mean(weighted, attrgetter("model"))
        return ServerState(model, shares, state.rounds + 1), {f"share_{site}": shares[site] for site in shares}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)


def adjusted(shares: Mapping[str, float], gaps: Mapping[str, float], step: float) -> dict[str, float]:
    """The weights after a step by the gaps of some sites. With equal gaps, or a single gap, they do not change."""
    centre = sum(gaps[site] for site in sorted(gaps)) / max(len(gaps), 1)
    centred = {site: gap - centre for site, gap in gaps.items()}
    largest = max(map(abs, centred.values()), default=0.0)
    if not largest:
        return dict(shares)
    moved = {s: min(max(share + step * centred.get(s, 0.0) / largest, 0.0), 1.0) for s, share in shares.items()}
    total = sum(moved.values())
    return {site: share / total for site, share in moved.items()}
