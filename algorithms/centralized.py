"""Centralized: one model trained on the pooled data of all inside sites; the upper reference of a comparison.

A real federation cannot do this, because the data must not leave the sites. The optimiser's moments continue from round
to round, as in a training without rounds. The traffic counts model and moments as sent to one site and back. It does
not count the data.

    match_local_steps: a round has tau = sum_k n_k/n tau_k steps, tau_k those of site k in a round of FedAvg (the
    effective number of local steps, Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481, section 3)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from operator import add
from typing import Annotated, Any

import numpy as np

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Split, Task, weights
from raysim.training import OptimizerState


@dataclass(frozen=True)
class ServerState:
    """The model, and the moments of its optimiser."""

    model: Model
    moments: OptimizerState = field(default_factory=dict)


GROUP = "references"


@dataclass(frozen=True, kw_only=True)
class Centralized(LocalTraining):
    match_local_steps: Annotated[
        bool, "whether a round has as many optimiser steps as a site takes in a round of FedAvg (mean over sites)"
    ] = False

    def init(self, task: Task) -> ServerState:
        return ServerState(weights(task.network()))

    # at one site, which has the data of all inside sites
    def client(self, site: Site[Any], state: ServerState) -> Reply[ServerState]:
        net = self.load_global(site, state.model)
        pool, moments = pooled(site.task), dict(state.moments)
        steps = self.mean_local_steps(site.task) if self.match_local_steps else self.steps
        loss = replace(self, steps=steps).fit(net, site, split=pool, optimizer_state=moments)
        # Buffers are sent for every value of `buffers`, because the training site may change with the cohort.
        return Reply(ServerState(weights(net), moments), weight=len(pool), metrics={"loss": loss})

    def mean_local_steps(self, task: Task) -> int:
        """The optimiser steps of a site in a round of FedAvg: the mean, weighted by training examples, rounded."""
        sizes = [task.sizes[site]["train"] for site in task.inside]
        return round(sum(size * self.count_steps(range(size), task.batch_size) for size in sizes) / sum(sizes))

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        ((_, reply),) = fleet.at(fleet.sites[:1]).map(self.client, state).items()
        return reply.payload, {}

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        return self.predict_module(site, state.model)


@lru_cache(maxsize=1)
def pooled(task: Task) -> Split:
    """The training data of all inside sites as one split, in site order."""
    splits = [task.open(site).train for site in task.inside]
    pool = Split(
        inputs=np.concatenate([split.inputs for split in splits]),
        labels=np.concatenate([split.labels for split in splits if split.labels is not None]),
        cases=np.concatenate([split.cases for split in splits]),
        spacing=np.concatenate([split.spacing for split in splits]),
    )
    patches = [(split.images, split.sources) for split in splits if split.images and split.sources is not None]
    if not patches:
        return pool
    starts = np.cumsum([0, *(len(images) for images, _ in patches)])
    sources = [of_site + start for (_, of_site), start in zip(patches, starts[:-1], strict=True)]
    return replace(pool, images=reduce(add, (images for images, _ in patches)), sources=np.concatenate(sources))
