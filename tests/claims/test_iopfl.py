"""IOP-FL at an outside site with inverted contrast, which only one of four inside sites has.

The global model mostly fits the other three sites; the personal model of the fourth fits the outside site.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from algorithms.iopfl import IOPFL
from raysim import Score
from tests.claims.discs import Source, disc_task
from tests.claims.federations import final_scores, mean_score

SOURCES = {
    "a": Source(contrast=1.0),
    "b": Source(contrast=1.2),
    "c": Source(contrast=1.4),
    "d": Source(brightness=1.0, contrast=-1.0),
    "x": Source(brightness=1.0, contrast=-1.2),
}
ROUNDS = 40


@cache
def scores(algorithm: Any, seed: int) -> tuple[Score, ...]:
    return final_scores(algorithm, disc_task(SOURCES, ["x"], seed), ROUNDS, seed)


def dice(algorithm: Any, seed: int, metric: str) -> float:
    return 100 * mean_score(scores(algorithm, seed), "outside", metric)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_routing_at_an_outside_site(gate: Any, claim: Callable[..., None], beside: Callable[..., None]) -> None:
    iopfl = IOPFL(lr=0.005, gate=gate, outside_lr=0.01)

    def over_global(metric: str) -> Callable[[int], tuple[float, float]]:
        return lambda seed: (dice(iopfl, seed, metric), dice(iopfl, seed, "dice@global"))

    claim(f"IOP-FL, {gate}: Dice of routed predictions outside over FedAvg", over_global("dice"), margin=10)
    if gate == "softmax":
        beside("IOP-FL: Dice of the best expert for each image outside over FedAvg", over_global("routing_ceiling"))
