"""Helpers for tests of pre-training: sites with pools of different sizes, calls with the engine's random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysim import Data, LocalFleet, Model, Site, Split, Task, combine, federate, weights
from raysim.core.seeding import seed_all, seeded
from raysim.federation.site_executor import CallKey
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.contrastive_views import sample_batches

POOLS = {"site-01": 11, "site-02": 7, "site-03": 9}  # labelled and unlabelled images


@cache
def uneven(sites: int = 3) -> Task:
    """Up to three sites with five labelled images each, and 6, 2 and 4 unlabelled ones; a volume is one image."""
    data = SyntheticData(sites=sites, outside=(), cases=5, val=0, test=1, unlabelled=6, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}
    whole = Synthetic(data=data, network=network, batch_size=2).build()

    def opened(name: str) -> Data:
        found = whole.open(name)
        return replace(found, unlabelled=first(found.unlabelled, POOLS[name] - 5))

    return replace(whole, open=opened)


def first(split: Split, count: int) -> Split:
    labels = None if split.labels is None else split.labels[:count]
    return Split(split.inputs[:count], labels, split.cases[:count], split.spacing[:count])


def first_stage(mine: Any, rounds: int, sites: int = 3, **options: Any) -> tuple[list[Any], LocalFleet]:
    """`rounds` rounds of pre-training in a run with one more round, and the fleet."""
    mine, fleet = replace(mine, pretrain_rounds=rounds), LocalFleet(uneven(sites), rounds=rounds + 1)
    found = federate(mine, uneven(sites), fleet, rounds=rounds + 1, **options)
    return [next(found) for _ in range(rounds)], fleet


@contextmanager
def at(name: str, round: int, rounds: int, sites: int = 3, seed: int = 0) -> Iterator[Site[Any]]:
    """The site in the first call of round `round`. The global generators have the seeds of that call."""
    site = LocalFleet(uneven(sites), rounds=rounds + 1).executor._site(name, CallKey(seed, round, rounds + 1, 0), None)
    seed_all(seed, round, 0, name)
    yield site


def averaged(models: Mapping[str, Model]) -> Model:
    """The mean over sites, each weighted by its images."""
    return combine(list(models.values()), [POOLS[name] / sum(POOLS.values()) for name in models])


def one_round(mine: Any, loss: Callable[[nn.Module, Tensor], Tensor]) -> Model:
    """The mean of all sites' models after a round of plain SGD on `loss`, with batches of 4 images of any level."""
    learned = dict[str, Model]()
    with seeded(0, "init"):
        start = mine.init(uneven()).state
    for name in POOLS:
        with at(name, 0, 1) as site:
            site, pool = mine.pretraining_view(site)
            net = mine.load_pretraining_network(site, start)
            sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
            for index in sample_batches(torch.zeros(len(pool)), 4, math.ceil(len(pool) / 4)):
                sgd.zero_grad()
                loss(net, pool.take(index, torch.device("cpu"))).backward()
                sgd.step()
            learned[name] = weights(net)
    return averaged(learned)


def assert_close(found: Model, expected: Model, tolerance: float = 1e-4) -> None:
    """Asserts that each tensor of `expected` is in `found`, with differences up to `tolerance`."""
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance, err_msg=name)
