"""ELCFS, FedRDN and FedDG-GA on discs at an outside site whose brightness or contrast is rare, or new, in training.

ELCFS and FedRDN: each inside site has images of one brightness, and the network has no normalisation, so it recognises
discs by their absolute intensity. At the brightness between, the background is as bright as the discs of the other
site. For FedRDN the outside site has images of two scanners, so normalisation by its own statistics is not enough.
FedDG-GA: one of six inside sites has inverted contrast, and so has the outside site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from algorithms.elcfs import ELCFS
from algorithms.fedavg import FedAvg
from algorithms.feddg_ga import FedDGGA
from algorithms.fedrdn import FedRDN, measured, normalized
from raysim import Data, Task
from tests.claims.discs import Source, disc_task
from tests.claims.federations import final_scores, mean_score

BRIGHTNESS = {"a": Source(brightness=0.0), "b": Source(brightness=2.0), "x": Source(brightness=1.0)}
SCANNERS = {"a": Source(brightness=0.0), "b": Source(brightness=1.0), "x": Source(brightness=(0.0, 1.0))}
MINORITY = {f"m{number}": Source(contrast=1 + 0.1 * number) for number in range(5)} | {
    "d": Source(brightness=1.0, contrast=-1.0),
    "x": Source(brightness=1.0, contrast=-1.2),
}
ROUNDS = 20
TRAINING: dict[str, Any] = {"lr": 0.01, "epochs": 5}


def plain_task(sources: Mapping[str, Source], seed: int) -> Task:
    return disc_task(sources, ["x"], seed, normalize=False)


def normalized_task(task: Task) -> Task:
    """The task with the images of each site normalised by its own statistics, as FedRDN does for predictions."""

    @cache
    def normalized_data(site: str) -> Data:
        data = task.open(site)
        own = measured(data.train if len(data.train) else data.test)
        return replace(data, **{name: normalized(data[name], own) for name in ("train", "val", "test")})

    return replace(task, open=normalized_data)


def dice(algorithm: Any, task: Task, seed: int, rounds: int = ROUNDS) -> float:
    return 100 * mean_score(final_scores(algorithm, task, rounds, seed), "outside", "dice")


def test_elcfs(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        task = plain_task(BRIGHTNESS, seed)
        return dice(ELCFS(**TRAINING), task, seed), dice(FedAvg(**TRAINING), task, seed)

    claim("ELCFS: Dice outside at a brightness between those of the sites, over FedAvg", measure, margin=20)


def test_fedrdn(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        task = plain_task(SCANNERS, seed)
        return dice(FedRDN(**TRAINING), task, seed), dice(FedAvg(**TRAINING), normalized_task(task), seed)

    claim("FedRDN: Dice outside with two scanners, over FedAvg on normalised images", measure, margin=20)


def test_feddg_ga(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        task = disc_task(MINORITY, ["x"], seed)
        return dice(FedDGGA(lr=0.005), task, seed, 30), dice(FedAvg(lr=0.005), task, seed, 30)

    claim("FedDG-GA: Dice outside with the contrast of one of six sites, over FedAvg", measure, margin=20)
