"""FedSM, FedSM-extra and IOP-FL on discs whose labels differ by 4 pixels; the contrast tells which label a site has.

The network normalises each image, so a global model cannot see the contrast and predicts the mean of both labels. The
selector sees it. Sites with similar contrast have the same label, so it does not matter which of them it selects.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from algorithms.fedavg import FedAvg
from algorithms.fedsm import FedSM
from algorithms.fedsm_extra import FedSMExtra
from algorithms.iopfl import IOPFL
from algorithms.localonly import LocalOnly
from raysim import Score
from tests.claims.discs import Source, disc_task
from tests.claims.federations import final_scores, mean_score

SOURCES = {
    "a": Source(contrast=1.0, margin=2),
    "b": Source(contrast=1.2, margin=2),
    "c": Source(contrast=2.0, margin=-2),
    "d": Source(contrast=2.4, margin=-2),
    "x": Source(contrast=1.1, margin=2),
    "y": Source(contrast=2.2, margin=-2),
}
ROUNDS = 30
LR = 0.01
# Pairs of sites are alike, so a correct selector has a confidence of about 1/2.
FEDSM = FedSM(lr=LR, pull=0.9, threshold=0.3)


@cache
def scores(algorithm: Any, rounds: int, seed: int) -> tuple[Score, ...]:
    return final_scores(algorithm, disc_task(SOURCES, ["x", "y"], seed), rounds, seed)


def dice(algorithm: Any, seed: int, role: str = "inside", metric: str = "dice", rounds: int = ROUNDS) -> float:
    return 100 * mean_score(scores(algorithm, rounds, seed), role, metric)


def over_fedavg(method: Callable[[int], float], role: str = "inside") -> Callable[[int], tuple[float, float]]:
    return lambda seed: (method(seed), dice(FedAvg(lr=LR), seed, role))


def test_fedsm(claim: Callable[..., None]) -> None:
    personal = over_fedavg(lambda seed: dice(FEDSM, seed, metric="dice@personal"))
    claim("FedSM: Dice of personal models over FedAvg", personal, margin=20)
    claim(
        "FedSM: Dice of routed predictions inside over FedAvg", over_fedavg(lambda seed: dice(FEDSM, seed)), margin=10
    )
    outside = over_fedavg(lambda seed: dice(FEDSM, seed, "outside"), "outside")
    claim("FedSM: Dice of routed predictions outside over FedAvg", outside, margin=10)


def test_fedsm_extra(claim: Callable[..., None]) -> None:
    extra = FedSMExtra(lr=LR, pull=0.9)
    for role in ("inside", "outside"):
        routed = over_fedavg(lambda seed, role=role: dice(extra, seed, role, rounds=2 * ROUNDS), role)
        claim(f"FedSM-extra: Dice of routed predictions {role} over FedAvg", routed, margin=10)


def test_iopfl_inside(claim: Callable[..., None]) -> None:
    iopfl = over_fedavg(lambda seed: dice(IOPFL(lr=LR, passes=0), seed))
    claim("IOP-FL: Dice of personal models over FedAvg", iopfl, margin=20)


def test_local_training_is_reported_beside(beside: Callable[..., None]) -> None:
    beside("LocalOnly: Dice over FedAvg", over_fedavg(lambda seed: dice(LocalOnly(lr=LR), seed)))
