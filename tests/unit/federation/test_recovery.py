"""Failures in one process: lost objects, damaged checkpoints, failing sites. Results stay bit-identical."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from algorithms.fedavg import FedAvg
from raysim import Fleet, LocalFleet, Metrics, Model, Reply, Site
from raysim.core.errors import LostObjectError, RunError, SiteError
from raysim.core.events import Notice, RoundEvent, RunFinished
from raysim.core.fault_injection import parse_faults
from raysim.core.results import FailureAction
from raysim.federation.fleet import BaseFleet
from raysim.federation.runner import run_federation
from tests.support.remote import (
    fails_at_d,
    keep,
)
from tests.support.toy_runs import SGD, digest, failures, on_local, plan, task


def test_absent_sites_depend_on_the_seed_and_are_recorded(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        patchy = plan(tmp_path / name, FedAvg(**SGD), dropout=0.4, rounds=8)
        found.append(digest(list(run_federation(patchy, LocalFleet(patchy.task, rounds=8)))))
    assert found[0] == found[1]
    table = pd.read_parquet(tmp_path / "one" / "rounds.parquet")
    assert (table["sites"] + table["absent"]).tolist() == [6] * 8
    assert 5 <= table["absent"].sum() <= 35
    assert table["failures"].tolist() == [0] * 8  # an absent site is not a failure


def test_a_failed_site_is_left_out_if_enough_sites_reply() -> None:
    fleet = LocalFleet(task(), min_replies=0.8)  # 4.8 of 6 sites, rounded up to five
    assert list(fleet.map(fails_at_d)) == ["a", "b", "c", "e", "f"]
    (failure,) = fleet.accounting.failures
    assert (failure.sites, failure.action) == (("d",), FailureAction.LEFT_OUT)
    assert failure.cause.startswith("LookupError: no such organ (")
    assert "fails_at_d" in failure.remote


def test_bytes_sent_to_a_failed_site_are_counted(tmp_path: Path) -> None:
    failing = plan(tmp_path, Failing(**SGD), min_replies=0.5, rounds=2)
    list(run_federation(failing, LocalFleet(failing.task, rounds=2, min_replies=0.5)))
    table = pd.read_parquet(tmp_path / "rounds.parquet")
    assert table["left_out"].tolist() == [1, 1]
    assert (table["bytes_down"] * 5 == table["bytes_up"] * 6).all()


def exits(site: Site[Any], _: Any) -> Reply[int]:
    raise SystemExit(3)


def test_system_exit_in_a_client_function_is_a_failure() -> None:
    with pytest.raises(SiteError, match="site 'a' failed in round 1: SystemExit: 3"):
        LocalFleet(task()).map(exits)


@pytest.mark.parametrize("least", [1.0, 6, 10])
def test_too_few_replies_end_the_round(least: float) -> None:
    fleet = LocalFleet(task())
    fleet.options = replace(fleet.options, min_replies=least)
    with pytest.raises(SiteError, match="site 'd' failed in round 1: LookupError"):
        fleet.map(fails_at_d)


def test_no_reply_at_all_is_always_a_failure() -> None:
    fleet = LocalFleet(task()).at(["d"])
    fleet.options = replace(fleet.options, min_replies=0.01)
    with pytest.raises(SiteError, match="site 'd'"):
        fleet.map(fails_at_d)


@dataclass(frozen=True, kw_only=True)
class Failing(FedAvg):
    """Fails at site d."""

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        fails_at_d(site, model)
        return FedAvg.client(self, site, model)


@dataclass(frozen=True, kw_only=True)
class Losing(FedAvg):
    """Raises once, in the third round, the error of an object that was lost with its node."""

    mark: str

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        state, metrics = FedAvg.round(self, fleet, model)
        assert isinstance(fleet, BaseFleet)
        if fleet.accounting.round == 2 and not Path(self.mark).exists():
            Path(self.mark).touch()
            raise LostObjectError("an object was lost")
        return state, metrics


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_run_returns_to_its_last_checkpoint_when_objects_are_lost(tmp_path: Path, every: int) -> None:
    undisturbed = on_local(plan(tmp_path / "undisturbed", FedAvg(**SGD)))
    losing = Losing(**SGD, mark=str(tmp_path / "mark"))
    events = on_local(plan(tmp_path / "run", losing, checkpoint_every=every))
    assert digest(events) == digest(undisturbed)
    again = {1: [3], 2: [3], 4: [1, 2, 3]}[every]
    assert [event.number for event in events if isinstance(event, RoundEvent)] == [1, 2, *again, 4]
    assert failures(tmp_path / "run")[0]["action"] == FailureAction.ROLLED_BACK
    for name in ("rounds", "sites"):
        tables = [pd.read_parquet(tmp_path / run / f"{name}.parquet") for run in ("undisturbed", "run")]
        first, second = (table.drop(columns="seconds", errors="ignore") for table in tables)
        assert first.equals(second)


@pytest.mark.parametrize("damage", ["none", "torn", "all"])
def test_resume_uses_the_newest_intact_checkpoint(tmp_path: Path, damage: str) -> None:
    undisturbed = on_local(plan(tmp_path / "undisturbed", FedAvg(**SGD)))
    stopped = plan(tmp_path / "run", FedAvg(**SGD))
    events = run_federation(stopped, LocalFleet(stopped.task, rounds=4))
    assert [next(events) for _ in range(3)][-1].number == 3  # type: ignore[union-attr]  # rows
    events.close()  # type: ignore[attr-defined]  # a generator
    for path in (tmp_path / "run" / "checkpoints").glob("round_000[23]" if damage == "all" else "round_0003"):
        if damage != "none":
            (path / "state.safetensors").write_bytes(b"half")
    events_again = on_local(replace(stopped, resume=True))
    assert digest(events_again) == digest(undisturbed)
    first = {"none": 4, "torn": 3, "all": 1}[damage]
    assert [event.number for event in events_again if isinstance(event, RoundEvent)] == list(range(first, 5))
    notes = " ".join(event.text for event in events_again if isinstance(event, Notice))
    assert ("damaged" in notes) == (damage != "none")
    assert isinstance(events_again[-1], RunFinished)
    assert pd.read_parquet(tmp_path / "run" / "rounds.parquet")["round"].tolist() == [1, 2, 3, 4]


def test_a_run_that_lacks_only_its_summary_is_finished(tmp_path: Path) -> None:
    finished = plan(tmp_path, FedAvg(**SGD))
    undisturbed = on_local(finished)
    (tmp_path / "summary.json").unlink()
    again = on_local(replace(finished, resume=True))
    assert digest(again) == digest(undisturbed)
    assert not [event for event in again if isinstance(event, RoundEvent)]
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 4


@dataclass(frozen=True, kw_only=True)
class LosingAll(FedAvg):
    """Loses an object in every attempt of the third round, or once in every round."""

    always: bool
    folder: str

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        assert isinstance(fleet, BaseFleet)
        mark = Path(self.folder) / str(fleet.accounting.round)
        if fleet.accounting.round == 2 if self.always else not mark.exists():
            mark.touch()
            raise LostObjectError("an object was lost")
        return FedAvg.round(self, fleet, model)


def test_losses_with_new_rounds_between_them_do_not_end_the_run(tmp_path: Path) -> None:
    losing = plan(tmp_path, LosingAll(**SGD, always=False, folder=str(tmp_path)), rounds=8, checkpoint_every=2)
    events = on_local(losing)
    assert isinstance(events[-1], RunFinished)
    back = [failure for failure in failures(tmp_path) if failure["action"] == FailureAction.ROLLED_BACK]
    assert [failure["round"] for failure in back] == list(range(1, 9))
    assert [failure["seconds"] > 0 for failure in back] == [
        False,
        True,
    ] * 4  # finished rounds that were lost


def test_losses_in_a_row_end_the_run(tmp_path: Path) -> None:
    losing = plan(tmp_path, LosingAll(**SGD, always=True, folder=str(tmp_path)))
    with pytest.raises(RunError, match="an object was lost; this happened 5 times in a row"):
        on_local(losing)
    actions = [failure["action"] for failure in failures(tmp_path)]
    assert actions == [FailureAction.ROLLED_BACK] * 4 + [FailureAction.RUN_ENDED]


def test_dropped_replies_depend_on_the_seed(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        dropping = plan(tmp_path / name, FedAvg(**SGD), chaos="drop 0.3", min_replies=1)
        fleet = LocalFleet(dropping.task, rounds=4, min_replies=1, chaos=dropping.faults)
        events = list(run_federation(dropping, fleet))
        found.append((digest(events), [f["sites"] for f in failures(tmp_path / name)]))
    assert found[0] == found[1]
    assert 1 <= len(found[0][1]) < 24
    assert digest(on_local(plan(tmp_path / "undisturbed", FedAvg(**SGD)))) != found[0][0]


def test_a_failure_is_recorded_once_if_the_run_is_closed(tmp_path: Path) -> None:
    failing = plan(tmp_path, Failing(**SGD), min_replies=0.5)
    events = run_federation(failing, LocalFleet(failing.task, rounds=4, min_replies=0.5))
    assert isinstance(next(events), Notice)
    assert isinstance(next(events), RoundEvent)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert [failure["sites"] for failure in failures(tmp_path)] == [["d"]]


def test_a_slow_site_is_slow() -> None:
    fleet = LocalFleet(task(), chaos=parse_faults("slow b x1000"))
    fleet.map(keep)
    seconds = fleet.call_seconds
    assert seconds["b"] > 100 * max(seconds["c"], seconds["d"])
