"""FedAdam, FedYogi, FedAvgM: the server uses the mean change of the sites' models as a gradient (FedOpt).

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021,
Algorithm 2. https://arxiv.org/abs/2003.00295

    D = sum_k (n_k / n) (x_k - x)                       x_k: x after local training at site k
    adam, yogi:  m <- beta1 m + (1 - beta1) D           x <- x + server_lr m / (sqrt(v) + tau)
    adam:        v <- beta2 v + (1 - beta2) D^2         yogi:  v <- v - (1 - beta2) D^2 sign(v - D^2)
    avgm:        m <- beta1 m + D                       x <- x + server_lr m

As in the paper, there is no bias correction, and v starts at tau^2. Buffers are averaged as in FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean

GROUP = "global"


@dataclass(frozen=True)
class ServerState:
    """The global model, and the moments m and v of the server's optimiser; avgm has no v."""

    model: Model
    first_moment: Model
    second_moment: Model | None


@dataclass(frozen=True, kw_only=True)
class FedAdam(LocalTraining):
    server_optimizer: Annotated[
        Literal["adam", "yogi", "avgm"], "optimiser of the server: FedAdam, FedYogi or FedAvgM"
    ] = "adam"
    server_lr: Annotated[
        float, Gt(0), "learning rate of the server; use 0.001 to 0.1 for adam and yogi, about 1 for avgm"
    ] = 0.01
    beta1: Annotated[float, Ge(0), Lt(1), "decay rate of m"] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), "decay rate of v"] = 0.99
    tau: Annotated[float, Gt(0), "adaptivity; with a larger tau, the steps of all weights are more equal"] = 1e-3

    def init(self, task: Task) -> ServerState:
        model = self.make_update(task.network())[0]
        second = None if self.server_optimizer == "avgm" else filled(model.parameters, self.tau**2)
        return ServerState(model, filled(model.parameters, 0.0), second)

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, client_state = self.make_update(net)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        average, first, second = mean(fleet.map(self.client, state.model)), state.first_moment, state.second_moment
        x, m, v = {}, {}, {}
        for name in first:
            before = state.model[name].astype(np.float64)
            change = average[name] - before
            if second is None:
                m[name] = self.beta1 * first[name] + change
                step = m[name]
            else:
                m[name] = self.beta1 * first[name] + (1 - self.beta1) * change
                v[name] = self._next_second_moment(second[name].astype(np.float64), np.square(change))
                step = m[name] / (np.sqrt(v[name]) + self.tau)
            x[name] = before + self.server_lr * step
        model = average | like(first, x)
        return ServerState(model, like(first, m), None if second is None else like(second, v)), {}

    def _next_second_moment(self, v: Any, square: Any) -> Any:
        if self.server_optimizer == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * np.sign(v - square)

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)


def filled(model: Model, value: float) -> Model:
    """A model with the shapes and dtypes of `model`; all entries are `value`."""
    return Model.of({name: np.full_like(array, value) for name, array in model.items()})


def like(model: Model, arrays: dict[str, Any]) -> Model:
    """The float64 `arrays`, converted to the dtypes of `model`."""
    return Model.of({name: array.astype(model[name].dtype) for name, array in arrays.items()})
