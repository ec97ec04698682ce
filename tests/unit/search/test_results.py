"""The results of a search: the best trials, the Pareto front, the importance of keys, the tables."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from ray.tune.search import Searcher

from raysim.core.errors import RunError
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.search_html_report import write_search_report
from raysim.reporting.search_plots import importance
from raysim.reporting.terminal import Terminal
from raysim.search.api import raise_outcome, report_search
from raysim.search.live_report import LiveReport
from raysim.search.objectives import Objective, combine_rows, improve, pareto_front
from raysim.search.random_search import random_trials
from raysim.search.results import SearchResults
from raysim.search.samplers import ListedSampler
from raysim.search.space import Space, from_cli
from raysim.search.spec import FederationVariant, SearchSpec
from raysim.search.trial_runner import failed_result
from raysim.search.trial_store import TrialRecord, load_records, trial_directory
from raysim.search.tune_adapter import SearchStopper, TuneCallback
from raysim.search.tune_searcher import TuneSearcher, new_trial_numbers

DICE = Objective("inside/val/dice/mean", "higher")
BYTES = Objective("bytes", "lower")
BETTER = {"dice": "higher", "hd95": "lower"}
SPACE = Space(from_cli(["algorithm.lr=loguniform(1e-4,1e-2)", "algorithm.epochs=choice(1,2)"]))


def spec(out: Path, *objectives: Objective, trials: int = 0) -> SearchSpec:
    return SearchSpec(
        out=out,
        base={},
        space=SPACE,
        variants=(FederationVariant(0),),
        objectives=objectives or (DICE,),
        better=BETTER,
        rounds=4,
        trial_count=trials,
    )


def record(number: int, dice: float, rounds: int = 4, status: str = "done", size: float = 1.0) -> TrialRecord:
    values = {"algorithm.lr": 1e-3, "algorithm.epochs": 1 + number % 2}
    return TrialRecord(number, values, status, rounds, 1.0, {DICE.column: dice, "bytes": size})


def test_the_best_trial_has_run_all_rounds():
    results = SearchResults(spec(Path()), [record(1, 0.6), record(2, 0.9, 1, "stopped"), record(3, 0.7)], "best")
    assert [each.number for each in results.best()] == [3]
    assert [each.number for each in SearchResults(spec(Path()), [record(2, 0.9, 1, "stopped")], "best").best()] == [2]
    failed = record(4, 0.99, status="failed")
    nothing = record(5, math.nan)
    assert [each.number for each in SearchResults(spec(Path()), [failed, nothing, record(1, 0.6)], "best").best()] == [
        1
    ]


def test_the_front_contains_the_records_that_no_other_dominates():
    records = [record(1, 0.6, size=1), record(2, 0.7, size=2), record(3, 0.65, size=3), record(4, 0.7, size=5)]
    assert [each.number for each in pareto_front(records, [DICE, BYTES])] == [2, 1]
    assert [each.number for each in SearchResults(spec(Path(), DICE, BYTES), records, "best").best()] == [2, 1]


def test_federations_are_combined_by_mean_and_by_the_worst_held_out_site():
    rows = [
        (0, {"outside/val/dice/worst": 0.5, "outside/val/hd95/worst": 3.0, "loss": 1.0}),
        (0, {"outside/val/dice/worst": 0.7, "outside/val/hd95/worst": 5.0, "loss": 3.0}),
        (1, {"outside/val/dice/worst": 0.6, "outside/val/hd95/worst": 4.0, "loss": 1.0}),
        (1, {"outside/val/dice/worst": 0.9, "outside/val/hd95/worst": 6.0, "loss": None}),
    ]
    found = combine_rows(rows, BETTER)
    assert found == {
        "outside/val/dice/worst": pytest.approx(0.55),
        "outside/val/hd95/worst": pytest.approx(5.5),
        "loss": pytest.approx(1.5),  # over the rows that have one
    }


def test_a_federation_without_the_metric_is_not_averaged():
    rows = [(0, {"loss": 1.0}), (0, {"loss": 1.0, "outside/val/dice/mean": 0.4, "outside/val/dice/worst": 0.3})]
    rows += [(1, {"outside/val/dice/mean": 0.8, "outside/val/dice/worst": 0.5}), (1, {})]
    found = combine_rows(rows, BETTER)
    assert found == {
        "loss": 1.0,
        "outside/val/dice/mean": pytest.approx(0.6),
        "outside/val/dice/worst": pytest.approx(0.4),
    }


def test_a_key_with_an_effect_has_importance_and_one_without_has_none():
    records, rows = [], []
    for number in range(1, 17):
        lr = 1e-4 * 1.3**number
        records.append(TrialRecord(number, {"algorithm.lr": lr, "algorithm.epochs": 1 + number % 2}, "done", 2, 1.0))
        rows += [{"trial": number, "round": r, "value": number * r / 100} for r in (1, 2)]
    weights, at = importance(spec(Path()), records, pd.DataFrame(rows))
    assert at == 2
    # Four groups of four of 16 ranks: total 340, within 4 x 5 = 20, error 20 / 12.
    assert weights["algorithm.lr"] == pytest.approx((340 - 20 - 3 * 20 / 12) / (340 + 20 / 12))
    assert weights["algorithm.epochs"] == 0.0
    assert importance(spec(Path()), records[:3], pd.DataFrame(rows)) == ({}, 2)


def test_a_torn_record_is_skipped_and_tables_contain_choices_of_several_types(tmp_path):
    results = SearchResults(spec(tmp_path), [], "best")
    results.start_trial(1, {"algorithm.lr": 0.001, "task.network.norm": "two"})
    results.start_trial(2, {"algorithm.lr": 0.002, "task.network.norm": 2})
    result = {"round": 1, "spent": 0.5, "bytes": 10.0, DICE.column: 0.5, "loss": 1.0, "time_total_s": 3.0}
    result["best_values"] = {DICE.column: 0.5}
    results.add_round(1, result)
    results.add_round(1, result | {"round": 2, DICE.column: 0.4})
    known = load_records(tmp_path)[0]  # a search that is killed now continues with this record
    assert (known.rounds, known.last[DICE.column], known.best[DICE.column]) == (2, 0.4, 0.5)
    results.end_trial(1)
    results.add_round(2, failed_result("out of memory", 0))
    results.end_trial(2)
    results.write_tables()
    (tmp_path / "trials" / "0003").mkdir()
    (tmp_path / "trials" / "0003" / "trial.json").write_text('{"number": 3, "val')
    assert [(each.number, each.status, each.rounds) for each in load_records(tmp_path)] == [
        (1, "stopped", 2),
        (2, "failed", 0),
    ]
    table = pd.read_parquet(tmp_path / "trials.parquet").set_index("trial")
    assert list(table["task.network.norm"]) == ["two", "2"]
    assert (table.loc[1, DICE.column], table.loc[1, f"best {DICE.column}"]) == (0.4, 0.5)
    assert table.loc[2, "cause"] == "out of memory"
    assert not [name for name in table.columns if "time" in name]


class SilentConsole:
    """A console that prints nothing."""

    def on_round(self, trial: int, result: Any) -> None: ...

    def on_trial_end(self, record: TrialRecord) -> None: ...


class TuneTrial(SimpleNamespace):
    """A trial as Tune's callbacks get it."""

    def __str__(self) -> str:
        return str(self.config["trial"])

    def get_error(self) -> str:
        return "its node was lost"


def callback(results: SearchResults) -> TuneCallback:
    return TuneCallback(results, SilentConsole(), None, SearchStopper(None), None)


def test_new_values_of_pbt_are_recorded_only_with_the_new_state(tmp_path):
    results = SearchResults(spec(tmp_path), [], "best")
    results.start_trial(2, {"algorithm.lr": 0.001, "task.network.channels": (4, 8)})
    given = {"round": 2, "spent": 1.0, "bytes": 1.0, DICE.column: 0.5, "best_values": {DICE.column: 0.5}}
    mutated = TuneTrial(config={"trial": 2, "algorithm.lr": 0.002, "task.network.channels": (4, 8)})
    callback(results).on_trial_result(0, [], mutated, given)  # Tune has changed the values already
    for known in (results.records[2], load_records(tmp_path)[0]):
        assert (known.values["algorithm.lr"], known.lineage) == (0.001, False)
    note = {"round": 2, "from": 1, "values": {"algorithm.lr": 0.002, "task.network.channels": [[4], [8, 8]]}}
    (trial_directory(tmp_path, 2) / "lineage.jsonl").write_text(json.dumps(note) + "\n")
    callback(results).on_trial_result(0, [], mutated, given | {"round": 3})
    for known in (results.records[2], load_records(tmp_path)[0]):
        assert known.values == {"algorithm.lr": 0.002, "task.network.channels": ((4,), (8, 8))}
        assert known.lineage


def test_a_trial_starts_when_it_first_has_a_process(tmp_path):
    results = SearchResults(spec(tmp_path), [], "best")
    results.start_trial(1, {"algorithm.lr": 0.001})
    assert results.records[1].started == 0.0  # it waits
    trial = TuneTrial(config={"trial": 1})
    callback(results).on_trial_start(0, [], trial)
    (known,) = load_records(tmp_path)
    assert time.time() - 60 < known.started <= time.time()
    row = {"round": 1, "spent": 1.0, "bytes": 1.0, DICE.column: 0.5, "best_values": {DICE.column: 0.5}}
    callback(results).on_trial_result(0, [], trial, row)
    callback(results).on_trial_start(0, [], trial)  # it was paused
    assert load_records(tmp_path)[0].started == known.started


def test_an_ended_trial_that_reports_its_rounds_again_cannot_fail(tmp_path):
    done = record(1, 0.6)
    done.digests = {"": "0"}
    results = SearchResults(spec(tmp_path), [done, TrialRecord(2, {"algorithm.lr": 1e-3})], "best")
    for number in (1, 2):
        callback(results).on_trial_error(0, [], TuneTrial(config={"trial": number}))
    assert results.records[1].status == "done"
    assert (results.records[2].status, results.records[2].cause) == ("failed", "its node was lost")


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path):
    best: dict[str, float] = {}
    for value in (math.nan, 0.5, math.inf, 0.4):
        improve(best, {DICE.column: value}, [DICE])
    assert best == {DICE.column: 0.5}
    results = SearchResults(spec(tmp_path), [], "best")
    results.start_trial(1, {"algorithm.lr": 0.001})
    results.add_round(1, {"round": 1, "spent": 0.5, "bytes": 10.0, DICE.column: math.nan, "best_values": {}})
    assert SearchResults(spec(tmp_path), load_records(tmp_path), "best").best() == []
    assert SearchResults(spec(tmp_path), [record(2, math.inf)], "best").best() == []


def test_ties_are_named_and_the_lowest_number_is_the_best(tmp_path):
    records = [record(3, 0.7), record(1, 0.6), record(2, 0.7), record(4, 0.7, 1, "stopped")]
    results = SearchResults(spec(tmp_path), records, "best")
    assert [each.number for each in results.best()] == [2]
    assert [each.number for each in results.ties()] == [3]
    assert SearchResults(spec(tmp_path, DICE, BYTES), records, "best").ties() == []


def test_the_report_of_a_running_search_is_reloaded_every_minute(tmp_path):
    results = SearchResults(spec(tmp_path), [record(1, 0.6, 1, "stopped")], "best")
    report = LiveReport(results)
    report.update()
    assert not list(tmp_path.iterdir())
    report._due_at = 0.0
    report.update()
    refresh = '<meta http-equiv="refresh" content="60">'
    assert refresh in (tmp_path / "report.html").read_text()
    assert refresh not in write_search_report(results).read_text()
    assert report._due_at > time.monotonic() + 50


def test_the_worst_of_held_out_sites_is_plotted_as_it_is_compared(tmp_path):
    worst = Objective("best/outside/val/dice/worst", "higher")
    variants = (FederationVariant(0, "x"), FederationVariant(0, "y"))
    searched = replace(spec(tmp_path, worst), variants=variants)
    rows = [("without-x", 1, 0.5), ("without-y", 1, 0.7), ("without-x", 2, 0.9)]  # y has ended after round 1
    table = pd.DataFrame(
        [{"trial": 1, "federation": name, "round": at, "outside/val/dice/worst": value} for name, at, value in rows]
    )
    values = SearchResults(searched, [record(1, 0.6)], "best").objective_by_round(table)
    assert values.to_dict("list") == {"trial": [1, 1], "round": [1, 2], "value": [0.5, 0.7]}


def test_a_trial_with_a_torn_file_runs_first_and_from_its_start(tmp_path):
    results = SearchResults(spec(tmp_path), [], "best")
    for number in (1, 2, 3):
        results.start_trial(number, {"algorithm.lr": 0.001 * number})
    folder = trial_directory(tmp_path, 2)
    (folder / "trial.json").write_text('{"number": 2, "val')
    (folder / "log.jsonl").write_text("possibly the log of other values")
    new = new_trial_numbers(spec(tmp_path, trials=5), load_records(tmp_path))
    assert new == [2, 4, 5]
    assert new_trial_numbers(spec(tmp_path, trials=1), load_records(tmp_path)) == [2]
    again = SearchResults(spec(tmp_path), load_records(tmp_path), "best")
    values = list(random_trials(SPACE, 0, 5))
    searcher = TuneSearcher(ListedSampler(values), [], new, again.start_trial)
    assert [searcher.suggest(str(n))["trial"] for n in new] == new
    assert searcher.suggest("more") == Searcher.FINISHED
    assert again.records[2].values == values[1]
    assert not (folder / "log.jsonl").exists()


def test_a_search_without_evaluated_trials_fails(tmp_path, capsys):
    done = TrialRecord(1, {"algorithm.lr": 1e-3}, "done", 4, 1.0, {"loss": 0.5})
    results, console = SearchResults(spec(tmp_path), [done], "best"), SearchConsole(Terminal())
    report_search(results, console)
    with pytest.raises(RunError, match=r"no trial has a value of inside/val/dice/mean; .*rounds.parquet has"):
        raise_outcome(results, SearchStopper(None), console)
    assert "no trial has started" not in capsys.readouterr().out


def test_unfinished_or_missing_trials_leave_a_search_unfinished(tmp_path):
    done, started = record(1, 0.6), record(2, 0.5, 1, "running")
    done.digests = {"": "0"}
    for records, total, status in (([done, started], 2, "unfinished"), ([done], 2, "unfinished"), ([done], 1, "done")):
        results = SearchResults(spec(tmp_path, trials=total), records, "best")
        results.write_tables()
        page = write_search_report(results).read_text()
        assert re.search(r'<h1>.*class="status *(?:done)?">(\w+)<', page)[1] == status
        assert ("<dt>not started</dt><dd>1<" in page) == (len(records) < total)
        assert "running" not in page
        assert list(pd.read_parquet(tmp_path / "trials.parquet")["status"]) == ["done", "unfinished"][: len(records)]


def test_a_failed_trial_keeps_no_checkpoint(tmp_path):
    records = []
    for number, status in ((1, "done"), (2, "failed"), (3, "running")):
        folder = trial_directory(tmp_path, number)
        (folder / "checkpoints" / "round_0001").mkdir(parents=True)
        (folder / "log.jsonl").touch()
        (folder / "initial_weights.safetensors").touch()
        records.append(record(number, 0.5, status=status))
    records[0].digests = {"": "0"}
    SearchResults(spec(tmp_path), records, "best").end_trial(2)
    assert [path.parts[-2] for path in sorted(tmp_path.glob("trials/*/initial*"))] == ["0001", "0003"]
    assert [path.parts[-3] for path in sorted(tmp_path.glob("trials/*/checkpoints/round_*"))] == ["0001", "0003"]
