"""FedNova: the server divides each site's change by its local steps, so that more steps do not mean more weight.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, equations 9 to 12. https://arxiv.org/abs/2007.07481

    site k takes T_k steps from x to x_k;  a_k = sum_(t=1..T_k) (1 - rho^t) / (1 - rho),  which is T_k without momentum
    x <- x + a sum_k p_k (x_k - x) / a_k        p_k = n_k / n,  a = sum_k p_k a_k

rho is the momentum of the local SGD, and a_k is the weight of a constant gradient in x - x_k, divided by the learning
rate. If all sites take as many steps, this is FedAvg. Our reading: buffers are averaged as in FedAvg. The variants of
the paper with a proximal term, with momentum at the server, and with other values of a are not implemented.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, Literal

from annotated_types import Gt

from raysim import ConfigError, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean

GROUP = "global"


@dataclass(frozen=True)
class Update:
    """The site's model, and a_k."""

    model: Model
    local_steps: float


@dataclass(frozen=True, kw_only=True)
class FedNova(LocalTraining):
    lr: Annotated[float, Gt(0), "learning rate of the local sgd"] = 0.05
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], "local optimiser: must be sgd, because a_k is the sum of the steps of sgd"
    ] = "sgd"

    def __post_init__(self) -> None:
        if self.optimizer != "sgd":
            raise ConfigError(
                f"fednova: algorithm.optimizer={self.optimizer}: expected sgd, because only then is the change of a "
                "site a weighted sum of its gradients; set algorithm.optimizer=sgd, and an algorithm.lr for sgd"
            )

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Update]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, client_state = self.make_update(net)
        local_steps = accumulated_steps(self.count_steps(site.data.train, site.task.batch_size), self.momentum)
        payload = Update(update, local_steps)
        return Reply(payload, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        replies = fleet.map(self.client, model)
        total = sum(reply.weight for reply in replies.values())
        steps = {site: reply.payload.local_steps for site, reply in replies.items()}
        effective = sum(replies[site].weight / total * steps[site] for site in steps)
        factors = [effective * replies[site].weight / total / steps[site] for site in steps]
        models = (reply.payload.model.parameters for reply in replies.values())
        moved = combine(chain([model.parameters], models), [1 - sum(factors), *factors])
        return mean(replies, attrgetter("model")) | moved, {"effective_steps": effective}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


def accumulated_steps(steps: int, momentum: float) -> float:
    """a_k = sum_(t=1..steps) (1 - momentum^t) / (1 - momentum): the weights of all gradients, added."""
    return sum((1 - momentum**t) / (1 - momentum) for t in range(1, steps + 1))
