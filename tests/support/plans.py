"""Plans of runs on tasks that are built in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysim import LocalFleet, Task
from raysim.config.schema import Cohort, RunConfig
from raysim.federation.plan import Plan
from raysim.tasks.synthetic import Synthetic

METRIC = "inside/test/distance"  # of the toy task


def make_plan(
    directory: Path, task: Task, algorithm: Any, *, cohort: float | int = 1.0, dropout: float = 0.0, **keys: Any
) -> Plan:
    """A plan of `algorithm` on `task` in `directory`, which is created; `keys` are keys of a run."""
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    size = Cohort(size=cohort, dropout=dropout)
    config = RunConfig(task=Synthetic(), algorithm=algorithm, cohort=size, **{"metric": METRIC} | keys)
    return Plan(config=config, task=task, directory=directory)


def plain_fleet(plan: Plan) -> LocalFleet:
    """A fleet with all sites of the plan in this process, without faults."""
    return LocalFleet(plan.task, seed=plan.config.seed, rounds=plan.config.rounds)
