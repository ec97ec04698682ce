"""Runs of the toy task at six sites, and the files of these runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysim import Task
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation
from tests.support import toy
from tests.support.plans import make_plan, plain_fleet

NAMES = ("a", "b", "c", "d", "e", "f")


SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def task() -> Task:
    return toy.task({name: ((number + 1.0, number),) for number, name in enumerate(NAMES)})


def plan(out: Path, algorithm: Any, **keys: Any) -> Plan:
    return make_plan(out, keys.pop("task", None) or task(), algorithm, **{"rounds": 4} | keys)


def on_local(plan: Plan) -> list[Any]:
    return list(run_federation(plan, plain_fleet(plan)))


def digest(events: list[Any]) -> str:
    found: str = events[-1].values["digest"]
    return found


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
