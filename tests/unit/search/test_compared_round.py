"""The round of a trial that is compared, its test score, and trials that early stopping ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysim.config.merge import parse_pairs
from raysim.core.errors import ConfigError
from raysim.reporting.search_console import SearchConsole, describe_compared_round
from raysim.reporting.terminal import Terminal
from raysim.search.build_spec import build_search_spec
from raysim.search.objectives import Objective, combine_rows
from raysim.search.request import build_request
from raysim.search.results import SearchResults
from raysim.search.space import Space, from_cli
from raysim.search.spec import FederationVariant, SearchSpec
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds
from raysim.storage.run_directory import SUMMARY_FILE, read_summary
from tests.support.searches import LR, searched

VAL, TEST = "inside/val/dice/mean", "inside/test/dice/mean"
RATE = {"algorithm.lr": 0.03}


def rows(trial: TrialRounds) -> list[dict[str, Any]]:
    found = [trial.step()]
    while not found[-1]["done"]:
        found.append(trial.step())
    return found


def test_a_trial_is_compared_by_its_best_round(tmp_path: Path) -> None:
    search = searched(tmp_path, "rounds=6", "algorithm.epochs=3")
    assert [each.column for each in search.objectives] == [f"best/{VAL}"]
    assert search.compared_round == "best"
    seen = rows(TrialRounds(search, 1, RATE, TrialCache(search)))
    values = [row[VAL] for row in seen]
    for count, row in enumerate(seen, 1):
        best = max(range(count), key=lambda index: (values[index], -index))
        assert (row["best/round"], row[f"best/{VAL}"]) == (best + 1, values[best])
        assert row[f"best/{TEST}"] == seen[best][TEST]
    assert seen[-1]["best/round"] == read_summary(tmp_path / "trials" / "0001")["best"]["round"] < 6
    results = SearchResults(search, [], "best")
    results.start_trial(1, RATE)
    for row in seen:
        results.add_round(1, row)
    (record,) = results.best()
    assert record.last[TEST] == seen[-1][TEST]
    text = describe_compared_round(record, search)
    assert text == f"trial 1 in its best round, {seen[-1]['best/round']:g}: {TEST} {seen[-1][f'best/{TEST}']:.4f}"


def test_the_metric_of_the_objective_chooses_the_best_round(tmp_path: Path) -> None:
    search = searched(tmp_path, "task.data.outside=[x]")
    outside = replace(
        search, objectives=(Objective("bytes", "lower"), Objective("best/outside/val/dice/worst", "higher"))
    )
    assert outside.config(RATE, outside.variants[0]).metric == "outside/val/dice"
    assert replace(search, objectives=(Objective("bytes", "lower"),)).config(RATE, search.variants[0]).metric is None


def of_table(folder: Path, splits: str, *arguments: str, space: Sequence[str] = (LR,), **options: Any) -> SearchSpec:
    """The specification of a search over a table with two rows of each of these splits at the sites a and b."""
    rows = [f"{site},{split},{i},{i % 2}" for site in "ab" for split in splits.split() for i in range(2)]
    (folder / "table.csv").write_text("\n".join(["site,split,age,label", *rows]))
    table = ["task=tabular", f"task.data.table={folder / 'table.csv'}", f"task.data.cache={folder / 'cache'}"]
    request = build_request(Space(from_cli(space)), {}, parse_pairs([*table, "rounds=1", *arguments]), options)
    return build_search_spec(request, folder, SearchConsole(Terminal()))


@pytest.mark.parametrize(
    ("splits", "arguments", "options", "message"),
    [
        ("train test", [], {}, r"no inside site \(a, b\) has val cases; set (\S+), a share of the"),
        ("train test", [], {"holdout": "b"}, r"no outside site \(b\) has val cases; set (\S+), a share"),
        ("train test", [], {"metric": "inside/test/auc,bytes", "searcher": "tpe"}, r"has val cases; set (\S+),"),
        ("train val test", ["metric=inside/test/auc"], {}, r"never compared by a test score; use (metric=\S+)"),
    ],
)
def test_a_test_score_never_compares_trials(
    tmp_path: Path, splits: str, arguments: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        of_table(tmp_path, splits, *arguments, **options)
    cure = re.search(message, str(error.value))
    assert cure
    options.pop("metric", None)
    search = of_table(tmp_path, splits, cure[1], **options)
    assert [each.row_column.split("/")[1] for each in search.objectives] == ["val"]
    assert search.compared_round == "best"


def test_held_out_sites_may_be_evaluated_by_a_test_score_if_no_key_is_searched(tmp_path: Path) -> None:
    search = of_table(tmp_path, "train test", space=(), holdout="each")
    assert [each.column for each in search.objectives] == ["outside/test/accuracy/mean"]


def test_without_validation_cases_the_last_rounds_of_the_cheapest_trials_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = of_table(tmp_path, "train test", metric="bytes")
    assert "so the last rounds are compared" in capsys.readouterr().out
    assert ([each.column for each in search.objectives], search.compared_round) == (["bytes"], "last")


def test_the_last_rounds_are_compared_on_request(tmp_path: Path) -> None:
    search = searched(tmp_path, "rounds=4", judge="last")
    assert search.compared_round == "last"
    assert [each.column for each in search.objectives] == [VAL]


def test_pbt_compares_the_states_that_it_copies(tmp_path: Path) -> None:
    assert [each.column for each in searched(tmp_path, "rounds=4", scheduler="pbt").objectives] == [VAL]


def test_the_worst_distance_of_best_rounds_is_the_longest() -> None:
    found = combine_rows(
        [(0, {"best/inside/val/hd95/worst": 3.0}), (0, {"best/inside/val/hd95/worst": 5.0})], {"hd95": "lower"}
    )
    assert found == {"best/inside/val/hd95/worst": 5.0}


def test_early_stopping_ends_each_federation_of_a_trial(tmp_path: Path) -> None:
    variants = (FederationVariant(0), FederationVariant(3))
    search = replace(searched(tmp_path, "rounds=12", "algorithm.epochs=3", "early_stopping=1"), variants=variants)
    cache = TrialCache(search)
    seen = rows(TrialRounds(search, 1, RATE, cache))
    summaries = [read_summary(tmp_path / "trials" / "0001" / f"seed-{seed}") for seed in (0, 3)]
    lengths = [summary["rounds"] for summary in summaries]
    assert min(lengths) < max(lengths) < 12
    assert [row["round"] for row in seen] == list(range(1, max(lengths) + 1))
    assert seen[-1]["status"] == "done"
    assert seen[-1]["digests"] == {f"seed-{seed}": s["digest"] for seed, s in zip((0, 3), summaries, strict=True)}
    assert seen[-1][f"best/{VAL}"] == pytest.approx(sum(summary["best"]["value"] for summary in summaries) / 2)
    # The process is lost before Tune has the last round.
    again = TrialRounds(search, 1, RATE, cache)
    assert rows(again)[-1] == seen[-1]


def test_a_stopped_federation_without_summary_is_not_run_again(tmp_path: Path) -> None:
    search = replace(searched(tmp_path, "rounds=12", "algorithm.epochs=3", "early_stopping=1"), session="one")
    cache = TrialCache(search)
    seen = rows(TrialRounds(search, 1, RATE, cache))
    assert len(seen) < 12
    (tmp_path / "trials" / "0001" / SUMMARY_FILE).unlink()
    again = TrialRounds(replace(search, session="two"), 1, RATE, cache)
    assert again.step() == seen[-1]
    assert read_summary(tmp_path / "trials" / "0001")["digest"] == seen[-1]["digests"][""]


@pytest.mark.parametrize("scheduler", ["pbt", "hyperband"])
def test_early_stopping_with_a_scheduler_that_waits_is_refused(scheduler: str) -> None:
    with pytest.raises(ConfigError, match=r"early_stopping: the trials of --scheduler .* use --scheduler asha"):
        build_request(Space(from_cli([LR])), {}, parse_pairs(["early_stopping=3"]), {"scheduler": scheduler})
