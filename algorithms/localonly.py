"""LocalOnly: every site trains its own model and nothing is sent; the lower reference of a comparison.

All sites start from the same weights, which are computed from the run's seed and not sent. Outside sites have no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, weights

GROUP = "references"


@dataclass(frozen=True)
class ServerState:
    """An empty state: the server has no model."""

    model: None = None


@dataclass(frozen=True, kw_only=True)
class LocalOnly(LocalTraining):
    def init(self, task: Task) -> ServerState:
        return ServerState()

    # at each site
    def client(self, site: Site[Model], _: None) -> Reply[None]:
        net = self.load_global(site, weights(site.load()) if site.client_state is None else site.client_state)
        loss = self.fit(net, site)
        return Reply(None, weight=len(site.data.train), metrics={"loss": loss}, client_state=weights(net))

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        fleet.map(self.client)
        return state, {}

    def predictor(self, site: Site[Model], state: ServerState) -> Predictor | None:
        return None if site.client_state is None else site.predict_module(site.client_state)
