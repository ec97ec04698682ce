"""Gradient alignment on a spurious feature: the sites agree on it to different degrees, the unseen site hardly does.

Each example has a core feature, which agrees with the class in 75 % of the examples of every site, and a spurious one,
which agrees in 95, 80 and 65 % at the three inside sites and in 10 % at the unseen site. Training on all sites learns
mostly the spurious feature. The gradients of its weight differ between sites, so the alignment loss penalises it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from algorithms.fedavg import FedAvg
from algorithms.gradient_alignment import GradientAlignment
from raysim import Data, Task
from tests.claims.federations import as_split, build_task, final_scores, mean_score

CORE, SPURIOUS, UNSEEN = 0.75, (0.95, 0.8, 0.65), 0.1
EXAMPLES, ROUNDS = 400, 150
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.25, "steps": 2}


def examples(count: int, spurious: float, rng: np.random.Generator) -> Any:
    """Two features, each 1 or -1 with noise, and the class (N, 1)."""
    sign = rng.choice([-1, 1], count)
    agree = np.stack([rng.random(count) < fraction for fraction in (CORE, spurious)], 1)
    features = sign[:, None] * np.where(agree, 1, -1) + rng.normal(0, 0.1, (count, 2))
    return as_split(features.astype(np.float32), (sign[:, None] > 0).astype(np.int64))


@cache
def task(seed: int) -> Task:
    rng = np.random.default_rng(seed)
    none = as_split(np.empty((0, 2), np.float32), np.empty((0, 1), np.int64))
    sites = {
        f"site-{number}": Data(
            train=examples(EXAMPLES, spurious, rng), val=none, test=examples(200, spurious, rng), unlabelled=none
        )
        for number, spurious in enumerate(SPURIOUS)
    }
    sites["unseen"] = Data(train=none, val=none, test=examples(2000, UNSEEN, rng), unlabelled=none)
    return build_task(sites, lambda: nn.Linear(2, 2), classes=2, batch_size=EXAMPLES, outside=["unseen"])


@cache
def unseen(algorithm: Any, seed: int) -> float:
    return mean_score(final_scores(algorithm, task(seed), ROUNDS, seed), "outside", "accuracy")


@pytest.mark.parametrize(("name", "fields"), [("R1", {"mode": "gradient", "server_lr": 0.5}), ("R2", SGD)])
def test_alignment_raises_the_accuracy_at_an_unseen_site(
    name: str, fields: dict[str, Any], claim: Callable[..., None]
) -> None:
    def measure(seed: int) -> tuple[float, float]:
        aligned = [unseen(GradientAlignment(strength=strength, **fields), seed) for strength in STRENGTHS]
        return max(aligned), unseen(GradientAlignment(strength=0.0, **fields), seed)

    claim(f"gradient alignment, {name}: unseen accuracy at the best strength, over strength 0", measure, margin=10)


def test_server_mode_is_reported_beside(beside: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        shifted = [unseen(GradientAlignment(mode="server", shift=shift, **SGD), seed) for shift in (0.3, 1.0)]
        return max(shifted), unseen(FedAvg(**SGD), seed)

    beside("gradient alignment, R3: unseen accuracy at the best shift, over FedAvg", measure)
