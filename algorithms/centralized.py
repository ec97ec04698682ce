"""Centralized: one model trained on the pooled data of all inside sites; the upper reference of a comparison.

A real federation cannot do this, because the data must not leave the sites. The traffic counts the model as sent to
one site and back. It does not count the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Split, Task, weights

GROUP = "references"


@dataclass(frozen=True, kw_only=True)
class Centralized(LocalTraining):
    def init(self, task: Task) -> Model:
        return weights(task.network())

    # at one site, which has the data of all inside sites
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        net = self.load_global(site, model)
        pool = pooled(site.task)
        loss = self.fit(net, site, split=pool)
        # Buffers are sent for every value of `buffers`, because the training site may change with the cohort.
        return Reply(weights(net), weight=len(pool), metrics={"loss": loss})

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        ((_, reply),) = fleet.at(fleet.sites[:1]).map(self.client, model).items()
        return reply.payload, {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


@lru_cache(maxsize=1)
def pooled(task: Task) -> Split:
    """The training data of all inside sites as one split, in site order."""
    splits = [task.open(site).train for site in task.inside]
    return Split(
        inputs=np.concatenate([split.inputs for split in splits]),
        labels=np.concatenate([split.labels for split in splits if split.labels is not None]),
        cases=np.concatenate([split.cases for split in splits]),
        spacing=np.concatenate([split.spacing for split in splits]),
    )
