"""The best round of a run: chosen by validation scores alone, kept in best/, the same after failures and resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from raysim import Fleet, Metrics, Model, Split, Task
from raysim.core.errors import LostObjectError
from raysim.core.events import Notice, RoundEvent
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan, selection_metric
from raysim.federation.runner import run_federation
from raysim.storage import checkpoint
from tests.support import toy
from tests.support.plans import plain_fleet
from tests.support.toy_runs import SGD, digest, on_local, plan

# The outputs at x = 1 grow from 0 to 2, and pass the label 1 of the validation points.
VAL: toy.Points = ((1, 1),)


def task(**keys: Any) -> Task:
    return toy.task({"a": toy.A, "b": toy.A}, **{"val": {"a": VAL, "b": VAL}} | keys)


def run_plan(out: Path, algorithm: Any = None, **keys: Any) -> Plan:
    algorithm = algorithm or FedAvg(**SGD)
    return plan(out, algorithm, **{"task": task(), "rounds": 8, "metric": "inside/val/distance"} | keys)


def summary(out: Path) -> Any:
    return json.loads((out / "summary.json").read_text())


def kept(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "best").glob("*"))


def test_the_best_round_is_kept_beside_the_last(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path, LocalOnly(**SGD)))
    table = pd.read_parquet(tmp_path / "rounds.parquet").set_index("round")
    # The output at x = 1 is 2 (1 - 0.8^n): 0.976 in round 3, so its distance from 1 is 0.024.
    assert table["inside/val/distance/mean"].idxmin() == 3
    assert table["best_round"].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    found = summary(tmp_path)["best"]
    assert (found["round"], found["metric"]) == (3, "inside/val/distance")
    assert found["value"] == pytest.approx(0.024, abs=1e-6)
    assert found["metrics"]["inside/test/distance"]["mean"] == table.loc[3, "inside/test/distance/mean"]
    assert found["sites"]["a"]["test/distance"] == pytest.approx(1.024, abs=1e-6)
    assert summary(tmp_path)["sites"]["a"]["test/distance"] == pytest.approx(2 * 0.8**8, abs=1e-6)
    assert kept(tmp_path) == ["round_0003"]
    best = checkpoint.read(tmp_path / "best" / "round_0003")
    assert sum(toy.line(best.client_states["a"])) == pytest.approx(0.976, abs=1e-6)


def test_the_best_round_of_seldom_evaluations(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path, evaluate_every=2, checkpoint_every=8))
    assert summary(tmp_path)["best"]["round"] == 4  # round 3 is not evaluated
    assert kept(tmp_path) == ["round_0004"]


@dataclass(frozen=True)
class TestScoresChanged(toy.Distance):
    """Distances on the test cases that favour another round."""

    __test__ = False

    def __call__(self, predict: Any, split: Split, device: Any) -> Metrics:
        found = super().__call__(predict, split, device)
        return found if split.labels is not None and split.labels[0] == 1 else {"distance": 10 - found["distance"]}


def test_a_test_score_never_changes_the_best_round(tmp_path: Path) -> None:
    for name, metric in (("val", "inside/val/distance"), ("test", "inside/test/distance")):
        for score in (toy.Distance(), TestScoresChanged()):
            out = tmp_path / f"{name}-{type(score).__name__}"
            on_local(run_plan(out, task=replace(task(), score=score), metric=metric))
            assert summary(out)["best"]["round"] == 3


def test_no_round_is_chosen_without_validation_cases(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path, task=task(val={}), metric="inside/test/distance"))
    assert summary(tmp_path)["best"]["round"] is None
    assert "no site that the metric refers to has val cases" in summary(tmp_path)["best"]["reason"]
    assert kept(tmp_path) == []
    assert pd.read_parquet(tmp_path / "rounds.parquet")["best_round"].isna().all()


def test_the_metric_that_chooses_is_on_validation_cases() -> None:
    outside = toy.task({"a": toy.A, "x": toy.A}, outside=["x"], val={"a": VAL})
    assert selection_metric(outside, "outside/test/distance@global") == "inside/val/distance@global"
    outside = toy.task({"a": toy.A, "x": toy.A}, outside=["x"], val={"a": VAL, "x": VAL})
    assert selection_metric(outside, "outside/test/distance") == "outside/val/distance"
    assert selection_metric(toy.two_sites(), "inside/test/distance") is None


@dataclass(frozen=True, kw_only=True)
class Losing(FedAvg):
    """Raises once, in round `at` (from 0), the error of an object that was lost with its node."""

    mark: str
    at: int

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        state, metrics = FedAvg.round(self, fleet, model)
        assert isinstance(fleet, BaseFleet)
        if fleet.accounting.round == self.at and not Path(self.mark).exists():
            Path(self.mark).touch()
            raise LostObjectError("an object was lost")
        return state, metrics


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def without_seconds(out: Path) -> Any:
    return {key: value for key, value in summary(out).items() if key not in ("seconds", "failures", "algorithm")}


@pytest.mark.parametrize("every", [1, 2, 4, 8])
def test_the_best_round_is_the_same_after_a_rollback(tmp_path: Path, every: int) -> None:
    on_local(run_plan(tmp_path / "undisturbed", checkpoint_every=every))
    for at in (2, 3, 5):
        losing = Losing(**SGD, mark=str(tmp_path / f"mark-{at}"), at=at)
        events = on_local(run_plan(tmp_path / f"run-{at}", losing, checkpoint_every=every))
        assert any(isinstance(event, Notice) and "returning to" in event.text for event in events)
        assert without_seconds(tmp_path / f"run-{at}") == without_seconds(tmp_path / "undisturbed")
        assert content(tmp_path / f"run-{at}" / "best") == content(tmp_path / "undisturbed" / "best")


def stop_after(events: Iterator[Any], number: int) -> None:
    for event in events:
        if isinstance(event, RoundEvent) and event.number == number:
            break
    events.close()  # type: ignore[attr-defined]  # a generator


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("damage", [False, True])
def test_the_best_round_is_the_same_after_resume(tmp_path: Path, every: int, damage: bool) -> None:
    undisturbed = on_local(run_plan(tmp_path / "undisturbed", checkpoint_every=every))
    for number in (1, 3, 4, 7):
        out = tmp_path / str(number)
        stopped = run_plan(out, checkpoint_every=every)
        stop_after(run_federation(stopped, plain_fleet(stopped)), number)
        newest = next(checkpoint.newest_first(out / "checkpoints"), None)
        if damage and newest is not None:  # it may share its file with a checkpoint in best/
            (newest / "state.safetensors").write_bytes(b"half")
        assert digest(on_local(replace(stopped, resume=True))) == digest(undisturbed)
        assert summary(out)["best"] == summary(tmp_path / "undisturbed")["best"]
        assert content(out / "best") == content(tmp_path / "undisturbed" / "best")


def test_a_run_with_a_damaged_best_round_returns_to_before_it(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path / "undisturbed"))
    stopped = run_plan(tmp_path / "run")
    stop_after(run_federation(stopped, plain_fleet(stopped)), 5)
    (tmp_path / "run" / "best" / "round_0003" / "state.json").unlink()
    events = on_local(replace(stopped, resume=True))
    assert "best/round_0003 cannot be read" in " ".join(e.text for e in events if isinstance(e, Notice))
    assert content(tmp_path / "run" / "best") == content(tmp_path / "undisturbed" / "best")
