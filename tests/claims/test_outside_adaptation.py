"""Tent and SAR at an outside site whose features have different scales and offsets than at the inside sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from algorithms.fedavg import FedAvg
from raysim import Data, Split, Task
from raysim.training import OutsideAdaptation
from tests.claims.federations import as_split, build_task, final_scores, mean_score

FEATURES, SITES, ROUNDS = 10, 3, 20


def examples(count: int, scale: Any, offset: Any, rng: np.random.Generator) -> Split:
    """Features x scale + offset; the class is the sign of the product of the first two of x."""
    x = rng.normal(size=(count, FEATURES))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)[:, None]
    return as_split((scale * x + offset).astype(np.float32), y)


def network() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 2))


@cache
def task(seed: int) -> Task:
    rng = np.random.default_rng(seed)
    none = examples(0, 1, 0, rng)
    sites = {
        f"site-{number}": Data(train=examples(200, 1, 0, rng), val=none, test=none, unlabelled=none)
        for number in range(SITES)
    }
    scale, offset = np.exp(rng.normal(0, 1, FEATURES)), rng.normal(0, 2, FEATURES)
    sites["outside"] = Data(train=none, val=none, test=examples(400, scale, offset, rng), unlabelled=none)
    return build_task(sites, network, classes=2, batch_size=50, outside=["outside"])


@cache
def accuracy(adaptation: str, seed: int) -> float:
    outside: Any = OutsideAdaptation(name=adaptation)  # type: ignore[arg-type]
    return mean_score(final_scores(FedAvg(lr=0.01, outside=outside), task(seed), ROUNDS, seed), "outside", "accuracy")


@pytest.mark.parametrize(("name", "adaptation"), [("Tent", "tent"), ("SAR", "sar")])
def test_adaptation(name: str, adaptation: str, claim: Callable[..., None], beside: Callable[..., None]) -> None:
    def over(other: str) -> Callable[[int], tuple[float, float]]:
        return lambda seed: (accuracy(adaptation, seed), accuracy(other, seed))

    claim(
        f"{name}: accuracy at an outside site with different scales, over the unchanged model",
        over("global"),
        margin=10,
    )
    beside(f"{name}: accuracy at an outside site with different scales, over batch statistics", over("batch_stats"))
