"""FedRDN: FedAvg on images that are normalised by the statistics of a random site.

Yan, Fu, Li, Xie, Ma, Yang, Zhu, "A Simple Data Augmentation for Feature Distribution Skewed Federated Learning", CVPR
2025. https://arxiv.org/abs/2306.09363

    mu_k, sigma_k = means over the images of site k of their mean and deviation, by channel; sent once to all sites
    training:    x <- (x - mu_j) / sigma_j,  j drawn from all sites, for each image in each step
    prediction:  x <- (x - mu_k) / sigma_k

Our reading: images are normalised after the task's preparation and augmentation. The statistics of a site are known
from its first round on. An outside site uses those of its test (else validation) images; `metric@global` uses none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysim import Array, ConfigError, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Split, Task, mean

GROUP = "domain generalisation"


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation (C,) of the channels of a site's images."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class ServerState:
    """The global model, and the statistics of the sites that took part."""

    model: Model
    statistics: Mapping[str, Statistics]


@dataclass(frozen=True, kw_only=True)
class FedRDN(LocalTraining):
    def init(self, task: Task) -> ServerState:
        if len(task.shape) < 3:
            raise ConfigError(
                f"algorithm=fedrdn normalises the channels of images, but an example has the shape {task.shape}; "
                "expected (C, *space); use a task with images, or another algorithm"
            )
        return ServerState(self.make_update(task.network())[0], {})

    # at each site
    def measure(self, site: Site[Any], _: None) -> Reply[Statistics]:
        return Reply(measured(site.data.train))

    def client(self, site: Site[Any], broadcast: ServerState) -> Reply[Model]:
        site.rewind()  # the random numbers must not depend on the call of `measure`
        net = self.load_global(site, broadcast.model)
        task = replace(site.task, augment=RandomNormalization(site.task, list(broadcast.statistics.values())))
        loss = self.fit(net, replace(site, task=task))
        update, client_state = self.make_update(net)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        new = [site for site in fleet.sites if site not in state.statistics]
        replies = fleet.at(new).map(self.measure) if new else {}
        known = {**state.statistics, **{site: reply.payload for site, reply in replies.items()}}
        broadcast = ServerState(state.model, {site: known[site] for site in sorted(known)})
        model = mean(fleet.map(self.client, broadcast))
        return replace(broadcast, model=model), {"shift": shift(list(known.values()))}

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        first = next((split for split in (site.data.train, site.data.test) if len(split)), site.data.val)
        own = state.statistics.get(site.name) or measured(first)
        if site.name in site.task.outside:  # the images by which `outside` adapts the model
            data = replace(site.data, **{name: normalized(site.data[name], own) for name in ("val", "test")})
            site = replace(site, data=data)
        net = self.predict_module(site, state.model)
        return lambda inputs: net(normalize(inputs, [own], np.zeros(len(inputs), np.int64)))


class RandomNormalization:
    """The augmentation of a task, followed by the normalisation of each image with statistics drawn from a list."""

    def __init__(self, task: Task, statistics: list[Statistics]) -> None:
        self.augment, self.statistics = task.augment, statistics

    def __call__(self, x: Tensor, y: Tensor, random_state: np.random.RandomState) -> tuple[Tensor, Tensor]:
        if self.augment is not None:
            x, y = self.augment(x, y, random_state)
        return normalize(x, self.statistics, random_state.randint(len(self.statistics), size=len(x))), y


def normalize(x: Tensor, statistics: list[Statistics], index: Array) -> Tensor:
    """Images (B, C, *space), each normalised by the entry of `statistics` with its index (B,)."""
    mu, sigma = (np.stack([getattr(entry, name) for entry in statistics])[index] for name in ("mean", "deviation"))
    shape = (*mu.shape, *[1] * (x.ndim - 2))
    return (x - torch.from_numpy(mu).to(x).reshape(shape)) / torch.from_numpy(sigma).to(x).reshape(shape)


def normalized(split: Split, own: Statistics) -> Split:
    inputs = normalize(torch.from_numpy(np.array(split.inputs)), [own], np.zeros(len(split), np.int64))
    return replace(split, inputs=inputs.numpy())


def measured(split: Split) -> Statistics:
    """Means over the images of their mean and deviation, by channel; a deviation of 0 is replaced by 1."""
    axes = tuple(range(2, split.inputs.ndim))
    mu, sigma = (f(split.inputs, axes, np.float64).mean(0) for f in (np.mean, np.std))
    return Statistics(mu.astype(np.float32), np.where(sigma > 0, sigma, 1).astype(np.float32))


def shift(statistics: list[Statistics]) -> float:
    """The largest difference of the means of two sites, in mean deviations; 0 if images are normalised already."""
    mu, sigma = (np.stack([getattr(entry, name) for entry in statistics]) for name in ("mean", "deviation"))
    return float((np.ptp(mu, axis=0) / sigma.mean(axis=0)).max())
