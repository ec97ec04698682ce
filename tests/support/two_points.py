"""Two sites with one point each, by hand: runs of an algorithm on them, and the gradient of a line."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysim import LocalFleet, federate
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
POINTS = {"a": (1.0, 2.0), "b": (2.0, 2.0)}  # of `toy.two_sites`; b has its point three times


def run(algorithm: Any, rounds: int = 2, task: Any = None, cohort: float | int = 1.0) -> tuple[Any, LocalFleet]:
    """The last round of a run, by default on `toy.two_sites`, and its fleet."""
    task = task or toy.two_sites()
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm, task, fleet, rounds=rounds, cohort=cohort)
    return end, fleet


def gradient(model: Any, site: str) -> Any:
    """The gradient of half the squared residual of the line (w, b) at the point of `site`."""
    x, y = POINTS[site]
    return (model @ (x, 1) - y) * np.array([x, 1.0])
