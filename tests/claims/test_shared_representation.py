"""FedRep, FedPer, FedBABU and FedRoD: sites that share a representation and need separate heads.

The class depends on three directions in 20 features, which all sites share. Each site combines them
differently and has few examples. So a global model cannot fit all sites, and a single site hardly finds the directions.
For FedRoD the relation is the same at all sites, and the frequencies of the classes differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from algorithms.fedavg import FedAvg
from algorithms.fedbabu import FedBABU
from algorithms.fedrep import FedRep
from algorithms.fedrod import FedRoD
from algorithms.localonly import LocalOnly
from raysim import Data, Task
from tests.claims.federations import Array, as_split, build_task, final_scores, mean_score

SITES, FEATURES, DIRECTIONS, TRAIN, TEST, BATCH, ROUNDS = 8, 20, 3, 30, 200, 20, 25
TRAINING: dict[str, Any] = {"lr": 0.03, "epochs": 5}
CLASSES, MAJORITY = 4, 0.7  # of the second problem


def of_draws(draw: Callable[[int, int], tuple[Array, Array]], network: Any, classes: int) -> Task:
    """A task of sites with TRAIN and TEST examples; `draw(site, count)` returns features and classes."""
    sites = {}
    for site in range(SITES):
        splits = [
            (x.astype(np.float32), y.astype(np.int64)[:, None]) for x, y in (draw(site, n) for n in (TRAIN, TEST))
        ]
        train, test = (as_split(*each) for each in splits)
        none = as_split(splits[0][0][:0], splits[0][1][:0])
        sites[f"site-{site}"] = Data(train=train, val=none, test=test, unlabelled=none)
    return build_task(sites, network, classes=classes, batch_size=BATCH)


@cache
def shared_directions(seed: int) -> Task:
    rng = np.random.default_rng(seed)
    directions, heads = rng.normal(size=(FEATURES, DIRECTIONS)), rng.normal(size=(SITES, DIRECTIONS))

    def draw(site: int, count: int) -> tuple[Array, Array]:
        x = rng.normal(size=(count, FEATURES))
        return x, x @ directions @ heads[site] > 0

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, DIRECTIONS, bias=False), nn.Linear(DIRECTIONS, 2))

    return of_draws(draw, network, 2)


@cache
def class_frequencies(seed: int) -> Task:
    """Four overlapping classes in two dimensions; in each site another class has most examples."""
    rng = np.random.default_rng(seed)
    centres = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    def draw(site: int, count: int) -> tuple[Array, Array]:
        frequency = np.full(CLASSES, (1 - MAJORITY) / (CLASSES - 1))
        frequency[site % CLASSES] = MAJORITY
        y = rng.choice(CLASSES, count, p=frequency)
        return centres[y] + rng.normal(size=(count, 2)), y

    return of_draws(draw, lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, CLASSES)), CLASSES)


@cache
def accuracy(algorithm: Any, task: Callable[[int], Task], seed: int) -> float:
    return mean_score(final_scores(algorithm, task(seed), ROUNDS, seed), "inside", "accuracy")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("FedRep", FedRep(head_epochs=5, **TRAINING)),
        ("FedPer", FedRep(joint=True, **TRAINING)),
        ("FedBABU", FedBABU(finetune_epochs=10, **TRAINING)),
    ],
)
def test_own_heads(name: str, method: Any, claim: Callable[..., None], beside: Callable[..., None]) -> None:
    def over(other: Any) -> Callable[[int], tuple[float, float]]:
        return lambda seed: (accuracy(method, shared_directions, seed), accuracy(other, shared_directions, seed))

    claim(f"{name}: accuracy with a head per site, over FedAvg", over(FedAvg(**TRAINING)), margin=10)
    beside(f"{name}: accuracy with a head per site, over LocalOnly", over(LocalOnly(**TRAINING)))


def test_fedrod(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        return accuracy(FedRoD(lr=0.03), class_frequencies, seed), accuracy(FedAvg(lr=0.03), class_frequencies, seed)

    claim("FedRoD: accuracy where class frequencies differ between sites, over FedAvg", measure, margin=3)
