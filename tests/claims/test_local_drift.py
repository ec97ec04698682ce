"""SCAFFOLD and FedProx where many local steps end at the minimum of each site: the mean of minima is not the minimum.

Site a has y = x with x of variance 9, site b has y = -x with x of variance 1. On all data w = 0.8 is best, with 64 % of
the variance explained. After 50 steps each site is at its minimum, so FedAvg stays near w = 0, with 0 %.
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
from algorithms.fedprox import FedProx
from algorithms.scaffold import Scaffold
from raysim import Data, Metrics, Predictor, Split, Task
from tests.claims.federations import as_split, build_task, final_scores, mean_score

EXAMPLES, ROUNDS, UNIT = 200, 20, 1000  # labels are integers, in units of 1 / UNIT
SGD: dict[str, Any] = {"lr": 0.05, "steps": 50, "optimizer": "sgd", "momentum": 0.0}
SITES = {"a": (3.0, 1.0), "b": (1.0, -1.0)}  # standard deviation of x, and w


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


@cache
def task(seed: int) -> Task:
    rng = np.random.default_rng(seed)
    none = as_split(np.empty((0, 1), np.float32), np.empty((0, 1), np.int64))
    pairs = {name: examples(EXAMPLES, *site, rng) for name, site in SITES.items()}
    sites = {name: Data(train=as_split(*pair), val=none, test=none, unlabelled=none) for name, pair in pairs.items()}
    pooled = (np.concatenate(part) for part in zip(*(examples(2000, *s, rng) for s in SITES.values()), strict=True))
    sites["pooled"] = Data(train=none, val=none, test=as_split(*pooled), unlabelled=none)
    network, score = lambda: nn.Linear(1, 1, bias=False), ExplainedVariance()
    return build_task(
        sites, network, classes=1, batch_size=EXAMPLES, outside=["pooled"], loss=half_squares, score=score
    )


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
