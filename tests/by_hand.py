"""What the tests of pre-training share: sites of unequal pools, and a site's call with the engine's random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from raysim import Data, LocalFleet, Model, Site, Split, Task, federate
from raysim.seeding import sow
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.worker import Call

POOLS = {"site-01": 11, "site-02": 7, "site-03": 9}  # images with a label or without


@cache
def uneven(sites: int = 3) -> Task:
    """Five labelled images at each of up to three sites, and six, two and four others; each volume is one image."""
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
    """So many rounds of pre-training, and one round that they leave."""
    mine, fleet = replace(mine, pretrain_rounds=rounds), LocalFleet(uneven(sites), rounds=rounds + 1)
    found = federate(mine, uneven(sites), fleet, rounds=rounds + 1, **options)
    return [next(found) for _ in range(rounds)], fleet


@contextmanager
def at(name: str, round: int, rounds: int, sites: int = 3, seed: int = 0) -> Iterator[Site[Any]]:
    """The site in the first call of that round, and its random numbers."""
    site = LocalFleet(uneven(sites), rounds=rounds + 1).worker._site(name, Call(seed, round, rounds + 1, 0), None)
    sow(seed, round, 0, name)
    yield site


def alike(found: Model, expected: Model, far: float = 1e-4) -> None:
    """Each tensor of `expected` is in `found`, no number farther apart."""
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=far, err_msg=name)
