"""LocalOnly: every site trains alone and nothing is sent: the lower reference of every comparison.

All sites start from the weights that the run's seed gives, which costs no bytes. An outside site has no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, weights


@dataclass(frozen=True)
class Nothing:
    """The server knows nothing."""

    model: None = None


@dataclass(frozen=True, kw_only=True)
class LocalOnly(LocalTraining):
    def init(self, task: Task) -> Nothing:
        return Nothing()

    # at each site
    def client(self, site: Site[Model], _: None) -> Reply[None]:
        net = self.receive(site, weights(site.load()) if site.memory is None else site.memory)
        loss = self.fit(net, site)
        return Reply(None, weight=len(site.data.train), metrics={"loss": loss}, memory=weights(net))

    # at the server
    def round(self, fleet: Fleet, nothing: Nothing) -> tuple[Nothing, Metrics]:
        fleet.map(self.client)
        return nothing, {}

    def predictor(self, site: Site[Model], nothing: Nothing) -> Predictor | None:
        return None if site.memory is None else site.answer(site.memory)
