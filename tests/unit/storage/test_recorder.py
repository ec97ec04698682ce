"""The files of a run: means computed by hand, complete files, and the fixed keys of the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from algorithms.fedavg import FedAvg
from raysim import LocalFleet, Score
from raysim.core.errors import RunError, SiteError
from raysim.core.events import RoundEvent, RunFinished
from raysim.federation.plan import Plan, chosen_metric
from raysim.federation.runner import run_federation
from raysim.storage.digest import digest
from raysim.storage.recorder import aggregate, direction
from tests.support import toy
from tests.support.plans import make_plan, plain_fleet

BETTER: Any = {"dice": "higher", "hd95": "lower"}


def score(site: str, value: float, cases: int, metric: str = "dice", role: Any = "inside") -> Score:
    return Score(site, role, "test", metric, value, cases)


def test_means_over_sites_and_over_cases_and_the_worst() -> None:
    found = aggregate([score("a", 0.9, 1), score("b", 0.5, 3)], BETTER)
    assert found == {"inside/test/dice": {"mean": 0.7, "weighted": pytest.approx(0.6), "worst": 0.5}}


def test_the_worst_distance_is_the_longest() -> None:
    found = aggregate([score("a", 9, 1, "hd95"), score("b", 5, 1, "hd95@global"), score("c", 2, 1, "hd95")], BETTER)
    assert found["inside/test/hd95"]["worst"] == 9
    assert found["inside/test/hd95@global"]["worst"] == 5


def test_roles_are_separate_and_training_scores_are_left_out() -> None:
    scores = [score("a", 1, 1), score("x", 0, 1, role="outside"), Score("a", "inside", "train", "loss", 3.0)]
    assert set(aggregate(scores, BETTER)) == {"inside/test/dice", "outside/test/dice"}
    assert aggregate([], BETTER) == {}


def test_direction_of_a_name() -> None:
    assert direction("inside/test/dice", BETTER) == "higher"
    assert direction("outside/val/hd95@global", BETTER) == "lower"


def plan(out: Path, rounds: int = 3, **keys: Any) -> Plan:
    algorithm = keys.pop("algorithm", FedAvg(optimizer="sgd", momentum=0.0, lr=0.1))
    task = keys.pop("task", None) or toy.task({"a": toy.A, "b": toy.B, "x": toy.B}, outside=["x"])
    return make_plan(out, task, algorithm, rounds=rounds, **{"evaluate_every": 2, "checkpoint_every": 2} | keys)


def events(plan: Plan) -> Iterator[RoundEvent | RunFinished]:
    return run_federation(plan, plain_fleet(plan))


def summary(out: Path) -> Any:
    return json.loads((out / "summary.json").read_text())


def test_a_run_writes_its_tables(tmp_path: Path) -> None:
    seen = list(events(plan(tmp_path)))
    rounds, sites = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("rounds", "sites"))
    assert rounds["round"].tolist() == [1, 2, 3]
    assert rounds["loss"].tolist() == pytest.approx([2.0, (1.45**2 + 3 * 1.1**2) / 8, seen[2].values["loss"]])
    assert rounds["bytes_up"].tolist() == rounds["bytes_down"].tolist() == [16, 16, 16]
    assert rounds["failures"].tolist() == [0, 0, 0]
    assert rounds["inside/test/distance/mean"].isna().tolist() == [True, False, False]
    assert list(sites.columns) == ["round", "site", "role", "split", "metric", "value"]
    assert sites.query("metric == 'distance'")["round"].tolist() == [2, 2, 2, 3, 3, 3]
    assert sites.query("site == 'x'")["role"].unique().tolist() == ["outside"]
    assert sites.query("metric == 'loss' and round == 1")["value"].tolist() == [2.0, 2.0]
    assert sites.query("metric == 'bytes_down' and site == 'a'")["value"].tolist() == [8, 8, 8]
    assert [type(event).__name__ for event in seen] == ["RoundEvent"] * 3 + ["RunFinished"]
    assert list(tmp_path.glob("tensorboard/events*"))
    assert not list(tmp_path.glob("*.partial"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round_0002", "round_0003"]


def test_the_summary_has_its_fixed_shape(tmp_path: Path) -> None:
    *_, end = events(plan(tmp_path, rounds=1))
    assert isinstance(end, RunFinished)
    found = summary(tmp_path)
    assert found == end.values
    # After one round, (w, b) = (0.35, 0.2): distance 1.45 at a, 1.1 at b and x; one case at a, three at b.
    three = {"mean": pytest.approx(1.275), "weighted": pytest.approx(4.75 / 4), "worst": pytest.approx(1.45)}
    same = dict.fromkeys(("mean", "weighted", "worst"), pytest.approx(1.1))
    near, far = pytest.approx(1.1), pytest.approx(1.45)
    assert {key: found[key] for key in found if key not in ("digest", "seconds")} == {
        "schema_version": 1,
        "status": "done",
        "algorithm": "fedavg",
        "task": "toy",
        "seed": 0,
        "shape": [1],
        "classes": {},
        "rounds": 1,
        "metric": "inside/test/distance",
        "direction": "lower",
        "better": {"distance": "lower"},
        "evaluated_round": 1,
        "metrics": {
            "inside/test/distance": three,
            "inside/test/distance@global": three,
            "outside/test/distance": same,
            "outside/test/distance@global": same,
        },
        "sites": {
            "a": {"role": "inside", "train/loss": 2.0, "test/distance": far, "test/distance@global": far},
            "b": {"role": "inside", "train/loss": 2.0, "test/distance": near, "test/distance@global": near},
            "x": {"role": "outside", "test/distance": near, "test/distance@global": near},
        },
        "best": {
            "round": None,
            "reason": "no site that the metric refers to has val cases, and no round is chosen by a test score; "
            "set task.data.val, or give some rows of the table the split val",
        },
        "notes": [],
        "bytes": {"up": 16, "down": 16, "between_sites": 0},
        "failures": {"incidents": 0, "left_out": 0, "seconds_lost": 0},
    }
    assert len(found["digest"]) == 64
    assert found["seconds"] > 0


def test_the_digest_covers_state_and_client_states(tmp_path: Path) -> None:
    mine = plan(tmp_path)
    fleet = LocalFleet(mine.task, rounds=3)
    list(run_federation(mine, fleet))
    from raysim.storage.checkpoint import newest_first, read

    start = read(next(newest_first(tmp_path / "checkpoints")))
    assert summary(tmp_path)["digest"] == digest(start.state, start.client_states)
    assert start.number == 3


@dataclass(frozen=True, kw_only=True)
class Failing(FedAvg):
    """Fails in the third round, at a site or at the server."""

    at: str
    error: Any = field(default_factory=lambda: ZeroDivisionError("on purpose"))

    def round(self, fleet: Any, model: Any) -> Any:
        if fleet.accounting.round == 2 and self.at == "server":
            raise self.error
        state, _ = FedAvg.round(self, fleet, model)
        return state, {}

    def client(self, site: Any, model: Any) -> Any:
        if site.round == 2 and self.at == site.name:
            raise self.error
        return FedAvg.client(self, site, model)


def test_a_failed_run_keeps_its_finished_rounds(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="site 'b' failed in round 3"):
        list(events(plan(tmp_path, rounds=5, algorithm=Failing(at="b"))))
    assert pd.read_parquet(tmp_path / "rounds.parquet")["round"].tolist() == [1, 2]
    found = summary(tmp_path)
    assert (found["status"], found["rounds"], found["digest"]) == ("failed", 2, None)
    assert "site 'b' failed in round 3: ZeroDivisionError: on purpose" in found["error"]
    assert found["metrics"]["inside/test/distance"]["mean"] > 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round_0002"]


def test_a_failure_at_the_server_is_a_run_error_with_its_round(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the server failed in round 3: ZeroDivisionError: on purpose") as caught:
        list(events(plan(tmp_path, rounds=5, algorithm=Failing(at="server"))))
    assert "raise self.error" in caught.value.remote
    assert summary(tmp_path)["status"] == "failed"


def test_a_failure_in_the_first_round_leaves_empty_tables(tmp_path: Path) -> None:
    task = toy.task({"a": toy.A, "b": ()})
    with pytest.raises(SiteError, match="no labelled examples, so the site cannot train"):
        list(events(plan(tmp_path, task=task)))
    assert len(pd.read_parquet(tmp_path / "rounds.parquet")) == 0
    assert summary(tmp_path)["rounds"] == 0


@pytest.mark.parametrize("stop", ["close", "interrupt"])
def test_an_interrupt_is_not_a_failure(tmp_path: Path, stop: str) -> None:
    error = KeyboardInterrupt() if stop == "interrupt" else None
    rows: Any = events(plan(tmp_path, rounds=9, algorithm=Failing(at="a" if error else "nowhere", error=error)))
    if error is None:
        next(rows), next(rows)
        rows.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            list(rows)
    assert (summary(tmp_path)["status"], summary(tmp_path)["rounds"]) == ("interrupted", 2)
    assert pd.read_parquet(tmp_path / "rounds.parquet")["round"].tolist() == [1, 2]


def test_the_chosen_metric() -> None:
    task = toy.task({"a": toy.A, "x": toy.B}, outside=["x"])
    assert chosen_metric(task, None) == "inside/test/distance"
    assert chosen_metric(task, "outside/test/distance@global") == "outside/test/distance@global"
