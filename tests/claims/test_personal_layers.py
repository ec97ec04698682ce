"""FedBN and SiloBN where feature scales differ between sites; personal models where relations differ between sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from algorithms.apfl import APFL
from algorithms.ditto import Ditto
from algorithms.fedala import FedALA
from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN
from algorithms.localonly import LocalOnly
from algorithms.pfedme import PFedMe
from raysim import Data, Task
from tests.claims.federations import Array, as_split, build_task, final_scores, mean_score

FEATURES, ROUNDS, BATCH = 10, 30, 16
SITES = 4


def build(
    draw: Callable[[int, int, np.random.Generator], tuple[Array, Array]], network: Any, train: int, seed: int
) -> Task:
    """A task of sites with `train` and 400 test examples; `draw(site, count, rng)` returns features and classes."""
    rng = np.random.default_rng(seed)
    none = as_split(np.empty((0, FEATURES), np.float32), np.empty((0, 1), np.int64))
    sites = {}
    for site in range(SITES):
        of_train, of_test = (
            as_split(x.astype(np.float32), y.astype(np.int64)[:, None])
            for x, y in (draw(site, count, rng) for count in (train, 400))
        )
        sites[f"site-{site}"] = Data(train=of_train, val=none, test=of_test, unlabelled=none)
    return build_task(sites, network, classes=2, batch_size=BATCH)


@cache
def scaled_features(seed: int) -> Task:
    """The class depends on products of features; each site has another scale and offset of each feature."""
    rng = np.random.default_rng(seed)
    scale, offset = np.exp(rng.normal(0, 1, (SITES, FEATURES))), rng.normal(0, 3, (SITES, FEATURES))

    def draw(site: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.normal(size=(count, FEATURES))
        return scale[site] * x + offset[site], x[:, 0] * x[:, 1] > 0

    def network() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 2))

    return build(draw, network, 200, seed)


@cache
def other_relations(seed: int) -> Task:
    """The class is the sign of w_k x with w_k = w + difference of site k; sites have few examples."""
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=FEATURES), rng.normal(0, 0.8, (SITES, FEATURES))

    def draw(site: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.normal(size=(count, FEATURES))
        return x, x @ (common + own[site]) > 0

    return build(draw, lambda: nn.Linear(FEATURES, 2), 30, seed)


@cache
def accuracy(algorithm: Any, task: Callable[[int], Task], seed: int) -> float:
    return mean_score(final_scores(algorithm, task(seed), ROUNDS, seed), "inside", "accuracy")


@pytest.mark.parametrize(("name", "local"), [("FedBN", "layers"), ("SiloBN", "statistics")])
def test_local_normalization(name: str, local: Any, claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        fedbn = FedBN(lr=0.01, local=local)
        return accuracy(fedbn, scaled_features, seed), accuracy(FedAvg(lr=0.01), scaled_features, seed)

    claim(f"{name}: accuracy where scales differ between sites, over FedAvg", measure, margin=5)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Ditto", Ditto(lr=0.03, lam=0.1)),
        ("APFL", APFL(lr=0.03, alpha_lr=1.0)),
        ("pFedMe", PFedMe(lr=0.03, lam=1.0, outer_lr=0.5)),
        ("FedALA", FedALA(lr=0.03, weight_lr=10.0)),
    ],
)
def test_personal_models(name: str, method: Any, claim: Callable[..., None], beside: Callable[..., None]) -> None:
    def over(other: Any) -> Callable[[int], tuple[float, float]]:
        return lambda seed: (accuracy(method, other_relations, seed), accuracy(other, other_relations, seed))

    claim(f"{name}: accuracy where relations differ between sites, over FedAvg", over(FedAvg(lr=0.03)), margin=3)
    beside(f"{name}: accuracy where relations differ between sites, over LocalOnly", over(LocalOnly(lr=0.03)))
