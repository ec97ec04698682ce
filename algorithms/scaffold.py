"""SCAFFOLD: control variates of the server and of each site correct the drift of local training.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020, Algorithm 1 with option II. https://arxiv.org/abs/1910.06378

    site k takes K steps from x:  y <- y - lr (g_k(y) - c_k + c)        c_k+ = c_k - c + (x - y) / (K lr)
    x <- x + server_lr mean_k (y_k - x)                                 c <- c + |S| / N mean_k (c_k+ - c_k)

Our reading: means are weighted by examples, and |S| / N is the cohort's fraction of all examples. Then c is always the
weighted mean of all c_k, and the first round equals FedAvg. `uniform` weights sites equally, as in the paper. Control
variates exist for parameters only; buffers are averaged as in FedAvg. Clipping applies to the corrected gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

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
from raysim.training import add_to_gradients

GROUP = "global"


@dataclass(frozen=True)
class ServerState:
    """The global model, the server's control variate c, and the total weight of all inside sites."""

    model: Model
    control: Model
    total_weight: float


@dataclass(frozen=True)
class ClientState:
    """The site's control variate c_k, and its buffers if they are local."""

    control: Model
    buffers: Model | None


@dataclass(frozen=True)
class Broadcast:
    """The global model, and the server's control variate c."""

    model: Model
    control: Model


@dataclass(frozen=True)
class Update:
    """The site's model, and the change of its control variate."""

    model: Model
    control_change: Model


@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalTraining):
    server_lr: Annotated[float, Gt(0), "learning rate of the server; 1 gives the mean of the sites' models"] = 1.0
    uniform: Annotated[bool, "whether sites are weighted equally, as in the paper, instead of by examples"] = False
    lr: Annotated[float, Gt(0), "learning rate of the local sgd"] = 0.05
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], "local optimiser: must be sgd, because c_k is a mean gradient"
    ] = "sgd"
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of the local sgd: must be 0"] = 0.0

    def __post_init__(self) -> None:
        if self.optimizer != "sgd" or self.momentum:
            raise ConfigError(
                f"scaffold: algorithm.optimizer={self.optimizer}, algorithm.momentum={self.momentum:g}: expected plain "
                "sgd, because only then is (x - y) / (K lr) the mean gradient; set algorithm.optimizer=sgd "
                "algorithm.momentum=0, and an algorithm.lr for sgd"
            )

    def init(self, task: Task) -> ServerState:
        model = self.make_update(task.network())[0]
        total = sum(self._weight(task.sizes[site]["train"]) for site in task.inside)
        return ServerState(model, 0.0 * model.parameters, total)

    # at each site
    def client(self, site: Site[ClientState], broadcast: Broadcast) -> Reply[Update]:
        model, c = broadcast.model, broadcast.control
        c_k = 0.0 * c if site.client_state is None else site.client_state.control
        net = self.load_global(site, model)
        loss = self.fit(net, site, correct=add_to_gradients(c - c_k, net))
        steps = self.count_steps(site.data.train, site.task.batch_size)
        per_step = 1 / (steps * self.lr_at(site))
        x, y = model.parameters, weights(net).parameters
        new_c_k = combine([c_k, c, x, y], [1, -1, per_step, -per_step])
        update, buffers = self.make_update(net)
        return Reply(
            Update(update, new_c_k - c_k),
            weight=self._weight(len(site.data.train)),
            metrics={"loss": loss},
            client_state=ClientState(new_c_k, None if buffers is UNCHANGED else buffers),
        )

    def _weight(self, examples: int) -> float:
        return 1.0 if self.uniform else float(examples)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        replies = fleet.map(self.client, Broadcast(state.model, state.control))
        average, control_change = (mean(replies, attrgetter(name)) for name in ("model", "control_change"))
        fraction = sum(reply.weight for reply in replies.values()) / state.total_weight
        moved = combine([state.model.parameters, average.parameters], [1 - self.server_lr, self.server_lr])
        control = combine([state.control, control_change], [1, fraction])
        return ServerState(average | moved, control, state.total_weight), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)
