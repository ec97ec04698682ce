"""The plan of a run: preparation of its data, and values derived from its configuration."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from raysim import Task
from raysim.config.resolve import load_config
from raysim.core.contracts import ProgressCallback
from raysim.core.errors import ConfigError
from raysim.core.events import Event, Message, Notice, Progress
from raysim.federation.plan import build_plan, prepare_task
from tests.support import toy


@dataclass(frozen=True)
class Preparing:
    """A task with two cases, one of which causes a warning."""

    def build(self, progress: ProgressCallback | None = None) -> Task:
        for done in (1, 2):
            if progress is not None:
                progress(done, 2)
        warnings.warn("case 2 has no label", stacklevel=2)
        warnings.warn("an old function", DeprecationWarning, stacklevel=2)
        return toy.task({"a": toy.A})


def test_data_preparation_emits_events() -> None:
    events: list[Event] = []
    assert prepare_task(Preparing(), events.append).inside == ("a",)
    message, *progress, notice = events
    assert message == Message("preparing the data")
    assert progress == [Progress(phase="preparing cases", done=done, total=2) for done in (1, 2)]
    assert notice == Notice("case 2 has no label")


def test_faults_are_refused_before_the_data_are_opened(tmp_path: Path) -> None:
    events: list[Event] = []
    config = load_config({"backend": "local", "chaos": "kill client@2"})
    with pytest.raises(ConfigError, match="backend=local has no actor"):
        build_plan(config, tmp_path, emit=events.append)
    assert not events


def test_plan_properties_follow_from_the_configuration(tmp_path: Path) -> None:
    config = load_config({"algorithm": "fedprox", "chaos": "slow a x2"})
    plan = build_plan(config, tmp_path, task=toy.task({"a": toy.A, "x": toy.B}, outside=["x"]))
    assert (plan.algorithm_name, plan.sites, plan.faults.slow) == ("fedprox", ("a", "x"), {"a": 2.0})
    assert (plan.metric, plan.data_paths) == ("inside/test/distance", [])
    assert plan.title == f"fedprox on {plan.task.name}"
