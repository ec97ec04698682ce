"""FedDyn: a regulariser that each site updates makes the minima of the sites' losses agree with that of their mean.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR
2021, Algorithm 1. https://arxiv.org/abs/2111.04263

    site k minimises  F_k(w_k) - <g_k, w_k> + alpha/2 ||w_k - w||^2,  which adds  alpha (w_k - w) - g_k  to its gradient
    g_k <- g_k - alpha (w_k - w),  at a minimum the gradient of F_k at w_k
    h <- h - alpha sum_(k in S) p_k (w_k - w)        w <- mean_(k in S) w_k - h / alpha

Our reading: means are weighted by examples and p_k is the fraction of all inside examples, so that h is the weighted
sum of all g_k and the fixed point is a minimum of the weighted sum of the F_k. In the paper sites have equal weight.
g_k and h exist for parameters only; buffers are averaged as in FedAvg. Clipping applies to the whole gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from torch import nn

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, combine, mean, weights
from raysim.training import GradientCorrection, add_to_gradients, copy_trained, proximal_term

GROUP = "global"


@dataclass(frozen=True)
class ServerState:
    """The global model w, the weighted sum h of all g_k, and the number of examples at all inside sites."""

    model: Model
    drift: Model
    examples: int


@dataclass(frozen=True)
class ClientState:
    """The site's gradient g_k, and its buffers if they are local."""

    gradient: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class FedDyn(LocalTraining):
    alpha: Annotated[float, Gt(0), "weight of the regulariser; with few local steps it must not be small"] = 0.1
    lr: Annotated[float, Gt(0), "learning rate of the local optimiser"] = 0.05
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], "local optimiser, created again in every round; in the paper sgd"
    ] = "sgd"
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of sgd; Adam's betas are 0.9 and 0.999"] = 0.0

    def init(self, task: Task) -> ServerState:
        model = self.make_update(task.network())[0]
        examples = sum(task.sizes[site]["train"] for site in task.inside)
        return ServerState(model, 0.0 * model.parameters, examples)

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        start = model.parameters
        gradient = 0.0 * start if site.client_state is None else site.client_state.gradient
        net = self.load_global(site, model)
        loss = self.fit(net, site, correct=regularizer(net, gradient, self.alpha))
        end = weights(net).parameters
        update, buffers = self.make_update(net)
        client_state = ClientState(
            combine([gradient, end, start], [1, -self.alpha, self.alpha]), None if buffers is UNCHANGED else buffers
        )
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, state.model)
        average = mean(replies)
        step = self.alpha * sum(reply.weight for reply in replies.values()) / state.examples
        drift = combine([state.drift, average.parameters, state.model.parameters], [1, -step, step])
        moved = combine([average.parameters, drift], [1, -1 / self.alpha])
        return ServerState(average | moved, drift, state.examples), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)


def regularizer(net: nn.Module, gradient: Model, alpha: float) -> GradientCorrection:
    """A correction that adds `alpha (w_k - w) - g_k` to the gradients, where w are the current parameters of `net`."""
    pull = proximal_term(copy_trained(net), alpha)
    subtract = add_to_gradients(-1.0 * gradient, net)

    def correct(parameters: list[nn.Parameter]) -> None:
        pull(parameters)
        subtract(parameters)

    return correct
