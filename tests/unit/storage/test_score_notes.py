"""Sentences about metrics without a value: at all sites, at some of them, in one split."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from algorithms.fedavg import FedAvg
from raysim.core.events import Notice, RunFinished
from raysim.federation.runner import run_federation
from raysim.reporting.console import site_tables
from raysim.reporting.html_report import write_report
from raysim.storage.score_notes import NOTHING_EVALUATED, REASONS, score_notes
from tests.support import toy
from tests.support.plans import make_plan, plain_fleet

TASK = toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])


def notes(chosen: bool = True, **scores: dict[str, float]) -> list[str]:
    return score_notes(TASK, scores, "inside/test/distance", has_chosen=chosen)


def test_a_complete_evaluation_has_no_note() -> None:
    every = {"test/distance": 1.0, "test/distance@global": 1.0}
    assert notes(a=every | {"train/loss": 2.0}, b=every, x=every) == []


def test_nothing_evaluated() -> None:
    assert notes() == notes(a={"train/loss": 2.0}) == [NOTHING_EVALUATED]


def test_a_metric_without_a_value_at_some_sites() -> None:
    every = {"test/distance": 1.0, "test/distance@global": 1.0}
    last = f"{REASONS}. Means are over the other sites"
    assert notes(a=every, b={}, x=every) == ["test/distance: no value at b", last]
    assert notes(a=every, b=every, x={"test/distance@global": 1.0}) == ["test/distance: no value at x", last]
    assert notes(a=every, b={"test/distance": 1.0}, x=every) == ["test/distance@global: no value at b", last]


def test_the_main_metric_without_a_value() -> None:
    every = {"test/distance": 1.0}
    first, second, _ = notes(chosen=False, x=every)
    assert first == "the main metric inside/test/distance has no value; choose another one with the key metric"
    assert second == "test/distance: no value at a, b"


def test_a_site_without_cases_in_a_split() -> None:
    sizes = {**TASK.sizes, "b": {"train": 3, "val": 0, "test": 0, "unlabelled": 0}}
    scores = {site: {"test/distance": 1.0} for site in ("a", "x")}
    assert score_notes(replace(TASK, sizes=sizes), scores, "", has_chosen=True) == ["no test cases at b"]


@dataclass(frozen=True, kw_only=True)
class Silent(FedAvg):
    """FedAvg without a model to evaluate at site b."""

    def predictor(self, site: Any, model: Any) -> Any:
        return None if site.name == "b" else self.predict_module(site, model)


class Undefined:
    """A scorer whose metric no case defines."""

    better = MappingProxyType({"distance": "lower"})

    def __call__(self, *_: Any) -> dict[str, float]:
        return {}


def finished(out: Path, task: Any, algorithm: type[FedAvg]) -> tuple[list[Any], Any]:
    plan = make_plan(out, task, algorithm(optimizer="sgd", momentum=0.0, lr=0.1), rounds=2)
    events = list(run_federation(plan, plain_fleet(plan)))
    assert isinstance(events[-1], RunFinished)
    return events, json.loads((out / "summary.json").read_text())


def test_a_run_that_evaluates_nothing_reports_it(tmp_path: Path) -> None:
    events, summary = finished(tmp_path, replace(TASK, score=Undefined()), FedAvg)
    assert [event.text for event in events if isinstance(event, Notice)] == [NOTHING_EVALUATED]
    assert summary["notes"] == [NOTHING_EVALUATED]
    assert summary["metrics"] == {}
    assert list(site_tables(summary, 100)) == []
    page = write_report(tmp_path).read_text()
    assert "No metric has a value." in page
    assert "nothing could be evaluated" in page


def test_a_cell_without_a_value_has_a_note(tmp_path: Path) -> None:
    _, summary = finished(tmp_path, TASK, Silent)
    assert summary["notes"][0] == "test/distance: no value at b"
    (table,) = site_tables(summary, 100)
    assert list(table.columns[2].cells)[1] == "-"
    assert "test/distance: no value at b." in write_report(tmp_path).read_text()
