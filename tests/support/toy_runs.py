"""Runs of the toy task at six sites, with the files that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysim import LocalFleet, Task
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation
from tests.support import toy

NAMES = ("a", "b", "c", "d", "e", "f")


SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def task() -> Task:
    return toy.task({name: ((number + 1.0, number),) for number, name in enumerate(NAMES)})


def plan(out: Path, algorithm: Any, **fields: Any) -> Plan:
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {
        "algorithm_name": "fedavg",
        "task": task(),
        "rounds": 4,
        "cohort": 1.0,
        "seed": 0,
        "evaluate_every": 1,
        "checkpoint_every": 1,
        "metric": "inside/test/distance",
    }
    return Plan(out=out, algorithm=algorithm, **defaults | fields)


def on_local(plan: Plan) -> list[Any]:
    return list(run_federation(plan, LocalFleet(plan.task, seed=plan.seed, rounds=plan.rounds)))


def digest(events: list[Any]) -> str:
    found: str = events[-1].values["digest"]
    return found


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
