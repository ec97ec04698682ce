"""SCAFFOLD, FedProx and FedDyn where many local steps end at the minimum of each site, and FedNova with unequal steps.

Site a has y = x with x of variance 9, site b has y = -x with x of variance 1. On all data w = 0.8 is best, with 64 % of
the variance explained. After 50 steps each site is at its minimum, so FedAvg stays near the mean of both minima, w = 0,
with 0 %.

For FedNova site c has 800 examples with y = x and x of variance 1, site d 100 with y = -x and x of variance 25. On all
data w = -0.52 is best, with 27 % explained. Site c takes eight times as many steps, so FedAvg gives it eight times too
much weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.feddyn import FedDyn
from algorithms.fednova import FedNova
from algorithms.fedprox import FedProx
from algorithms.scaffold import Scaffold
from raysim import Data, Metrics, Predictor, Split, Task
from tests.claims.federations import as_split, build_task, final_scores, mean_score

EXAMPLES, ROUNDS, UNIT = 200, 20, 1000  # labels are integers, in units of 1 / UNIT
SGD: dict[str, Any] = {"lr": 0.05, "steps": 50, "optimizer": "sgd", "momentum": 0.0}
SITES = {"a": (3.0, 1.0), "b": (1.0, -1.0)}  # standard deviation of x, and w
UNEQUAL_SITES = {"c": (1.0, 1.0, 800), "d": (5.0, -1.0, 100)}  # and the number of examples


def half_squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (outputs - labels / UNIT).square().mean()


@dataclass(frozen=True)
class ExplainedVariance:
    """The percentage of the mean square of y that the predictions explain."""

    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=lambda: {"explained": "higher"})

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        if not len(split) or split.labels is None:
            return {}
        with torch.no_grad():
            residual = predict(torch.tensor(split.inputs)).numpy() - split.labels / UNIT
        return {"explained": 100 * float(1 - np.square(residual).sum() / np.square(split.labels / UNIT).sum())}


def examples(count: int, spread: float, slope: float, rng: np.random.Generator) -> tuple[Any, Any]:
    x = rng.normal(0, spread, (count, 1))
    return x.astype(np.float32), np.rint(UNIT * slope * x).astype(np.int64)


def build(sites: Mapping[str, tuple[float, float, int]], batch_size: int, seed: int) -> Task:
    """A task of these sites, and an outside site with ten times the examples of all of them."""
    rng = np.random.default_rng(seed)
    none = as_split(np.empty((0, 1), np.float32), np.empty((0, 1), np.int64))
    pairs = {name: examples(count, *site, rng) for name, (*site, count) in sites.items()}
    data = {name: Data(train=as_split(*pair), val=none, test=none, unlabelled=none) for name, pair in pairs.items()}
    parts = (examples(10 * count, *site, rng) for *site, count in sites.values())
    pooled = (np.concatenate(part) for part in zip(*parts, strict=True))
    data["pooled"] = Data(train=none, val=none, test=as_split(*pooled), unlabelled=none)
    network, score = lambda: nn.Linear(1, 1, bias=False), ExplainedVariance()
    return build_task(
        data, network, classes=1, batch_size=batch_size, outside=["pooled"], loss=half_squares, score=score
    )


@cache
def task(seed: int) -> Task:
    return build({name: (*site, EXAMPLES) for name, site in SITES.items()}, EXAMPLES, seed)


@cache
def task_of_unequal_sites(seed: int) -> Task:
    return build(UNEQUAL_SITES, 20, seed)


@cache
def explained(algorithm: Any, seed: int) -> float:
    return mean_score(final_scores(algorithm, task(seed), ROUNDS, seed), "outside", "explained")


def over_fedavg(algorithm: Any) -> Callable[[int], tuple[float, float]]:
    return lambda seed: (explained(algorithm, seed), explained(FedAvg(**SGD), seed))


def test_scaffold(claim: Callable[..., None]) -> None:
    claim(
        "SCAFFOLD: variance explained after long local training, over FedAvg",
        over_fedavg(Scaffold(lr=0.05, steps=50)),
        30,
    )


def test_fedprox(claim: Callable[..., None]) -> None:
    claim(
        "FedProx: variance explained after long local training, over FedAvg", over_fedavg(FedProx(mu=10.0, **SGD)), 30
    )


def test_feddyn(claim: Callable[..., None]) -> None:
    feddyn = FedDyn(alpha=1.0, lr=0.05, steps=50)
    claim("FedDyn: variance explained after long local training, over FedAvg", over_fedavg(feddyn), 30)


def test_fednova(claim: Callable[..., None]) -> None:
    sgd: dict[str, Any] = {"lr": 0.002, "optimizer": "sgd", "momentum": 0.0}

    def measure(seed: int) -> tuple[float, float]:
        scores = (final_scores(each, task_of_unequal_sites(seed), 40, seed) for each in (FedNova(**sgd), FedAvg(**sgd)))
        nova, fedavg = (mean_score(found, "outside", "explained") for found in scores)
        return nova, fedavg

    claim("FedNova: variance explained where sites take different numbers of steps, over FedAvg", measure, 30)
