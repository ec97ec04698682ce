"""The task and the runs for the contract tests of every algorithm, in one process and on Ray."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from raysim import LocalFleet, Task, federate
from raysim.core.registry import algorithm_class, algorithms
from raysim.storage.digest import digest
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.slow import slow_except

ROUNDS = 4
NETWORK = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}


# One algorithm for each use of a fleet: state, server optimizer, client states, networks that stay at the sites,
# arguments by site, exchanges, stages.
EVERY_USE = (
    "fedavg",
    "fedadam",
    "localonly",
    "ditto",
    "scaffold",
    "fedbn",
    "gradient_alignment",
    "fedsm",
    "iopfl",
    "fcl",
)
EVERY_USE += ("fclopt", "fedsimclr", "elcfs", "fedala", "feddg_ga")
every_algorithm = pytest.mark.parametrize("name", sorted(algorithms()))
every_use = pytest.mark.parametrize("name", slow_except(sorted(algorithms()), EVERY_USE))


@cache
def task() -> Task:
    """Three inside sites and an outside site; the network has batch normalisation, so it has buffers."""
    data = SyntheticData(sites=3, outside=("far",), cases=4, val=0, test=2, unlabelled=2, size=(16, 16))
    return Synthetic(data=data, network=NETWORK, batch_size=2).build()


# By default 50 steps in each of four rounds, or 100 in each of two.
SHORT: dict[str, dict[str, Any]] = {name: {"selector_steps": 2} for name in ("fedsm", "fedsm_extra")}


def algorithm(name: str, **values: Any) -> Any:
    return algorithm_class(name)(**SHORT.get(name, {}) | values)


def run(algorithm: Any, fleet: Any = None, on: Task | None = None, **options: Any) -> tuple[list[Any], Any]:
    """The rounds and their fleet, on the task of this module, or the task `on`."""
    fleet = fleet or LocalFleet(task(), seed=options.get("seed", 0), rounds=ROUNDS)
    return list(federate(algorithm, on or task(), fleet, rounds=ROUNDS, **options)), fleet


def client_states(fleet: Any) -> dict[str, Any]:
    return dict(fleet.client_states)


@cache
def reference_run(name: str) -> tuple[list[Any], Any]:
    """The rounds of an uninterrupted run, and their fleet; shared by tests that only read them."""
    return run(algorithm(name))


def whole(name: str) -> str:
    """The digest of an uninterrupted run."""
    rounds, fleet = reference_run(name)
    return digest(rounds[-1].state, client_states(fleet))
