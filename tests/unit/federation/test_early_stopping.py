"""Early stopping: after which evaluation a run ends, and that a resumed run ends there too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.config.schema import EarlyStopping
from raysim.core.errors import ConfigError
from raysim.core.events import Notice, RoundEvent
from raysim.federation.validation import check_early_stopping
from raysim.storage.best_round import BestRoundTracker
from tests.support.toy_runs import digest, on_local
from tests.unit.federation.test_best_round import run_plan, summary, task


def without_gain(values: list[float], min_gain: float = 0.0) -> int:
    tracker = BestRoundTracker("inside/val/dice", "higher")
    for number, value in enumerate(values, 1):
        tracker.add({"round": number, "inside/val/dice/mean": value})
    return tracker.evaluations_without_gain(min_gain)


def test_evaluations_without_gain() -> None:
    assert [without_gain(values) for values in ([], [0.5], [0.5, 0.5], [0.5, 0.4, 0.45], [0.5, 0.4, 0.6])] == [
        *(0, 0, 1, 2, 0)
    ]
    # Small gains count together: 0.56 exceeds 0.5 by more than 0.05.
    assert [without_gain([0.5, 0.53, 0.54, 0.56][:count], 0.05) for count in (2, 3, 4)] == [1, 2, 0]


@pytest.mark.parametrize(("patience", "every", "last"), [(1, 1, 4), (2, 1, 5), (1, 2, 6), (3, 2, 8)])
def test_a_run_ends_after_evaluations_without_gain(tmp_path: Path, patience: int, every: int, last: int) -> None:
    # Round 3 is the best, of the even rounds round 4.
    stopping = EarlyStopping(patience=patience)
    events = on_local(run_plan(tmp_path, early_stopping=stopping, evaluate_every=every, checkpoint_every=8))
    assert [event.number for event in events if isinstance(event, RoundEvent)][-1] == last
    assert summary(tmp_path)["status"] == "done"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"round_{last:04d}"]
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert (f"early stopping after round {last} of 8" in " ".join(notices)) == (last < 8)
    assert ("early_stopping" in summary(tmp_path)) == (last < 8)


def test_the_state_is_that_of_a_run_with_fewer_rounds(tmp_path: Path) -> None:
    stopped = on_local(run_plan(tmp_path / "stopped", early_stopping=EarlyStopping(patience=2)))
    short = on_local(run_plan(tmp_path / "short", rounds=5))
    assert digest(stopped) == digest(short)


def test_a_stopped_run_without_summary_runs_no_further_round(tmp_path: Path) -> None:
    plan = run_plan(tmp_path, early_stopping=EarlyStopping(patience=2))
    undisturbed, before = on_local(plan), summary(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = on_local(replace(plan, resume=True))
    assert not [event for event in again if isinstance(event, RoundEvent)]
    assert digest(again) == digest(undisturbed)
    assert json.dumps(summary(tmp_path)) == json.dumps(before)


def test_early_stopping_without_validation_cases_is_refused(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"early_stopping": EarlyStopping(), "metric": "inside/test/distance"}
    with pytest.raises(ConfigError, match=r"early_stopping.patience=5: .* has val cases, .* remove early_stopping"):
        check_early_stopping(run_plan(tmp_path, task=task(val={}), **keys))


def test_a_patience_without_effect_is_noted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="early_stopping.patience=7 has no effect: rounds=8 .* 8 evaluations"):
        check_early_stopping(run_plan(tmp_path, early_stopping=EarlyStopping(patience=7)))
    check_early_stopping(run_plan(tmp_path, early_stopping=EarlyStopping(patience=6)))


def test_the_short_form_is_the_patience() -> None:
    assert resolve(parse_pairs(["early_stopping=3"])).early_stopping == EarlyStopping(patience=3)
    both = parse_pairs(["early_stopping.patience=4", "early_stopping.min_gain=0.01"])
    assert resolve(both).early_stopping == EarlyStopping(patience=4, min_gain=0.01)
    assert resolve({}).early_stopping is None
