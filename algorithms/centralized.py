"""Centralized: one model trained on the pooled data of all inside sites: the upper reference of every comparison.

No federation could do this: the data themselves would have to move. So the bytes count the model's trip to the
place where the data lie and back, as if that place were a site, and not the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Split, Task, weights


@dataclass(frozen=True, kw_only=True)
class Centralized(LocalTraining):
    def init(self, task: Task) -> Model:
        return weights(task.network())

    # at one place that holds the data of all inside sites
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        pool = pooled(site.task)
        loss = self.fit(net, site, split=pool)
        # Buffers too, whatever their policy: there is one place only, and it moves with the cohort.
        return Reply(weights(net), weight=len(pool), metrics={"loss": loss})

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        ((_, reply),) = fleet.at(fleet.sites[:1]).map(self.client, model).items()
        return reply.payload, {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


@lru_cache(maxsize=1)
def pooled(task: Task) -> Split:
    """The training data of all inside sites as one split, in order of site."""
    parts = [task.open(site).train for site in task.inside]
    return Split(
        inputs=np.concatenate([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts if part.labels is not None]),
        cases=np.concatenate([part.cases for part in parts]),
        spacing=np.concatenate([part.spacing for part in parts]),
    )
