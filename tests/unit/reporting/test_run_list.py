"""The list of runs: `raysim runs`, and the page index.html of the folder of new runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from raysim.cli.main import main
from raysim.reporting.run_list import RunRow, list_runs, write_index
from raysim.storage.run_directory import exclusive_lock
from tests.support.finished_runs import write_run

CASES = {"a": [0.5]}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runs"
    metrics = {"inside/test/dice": {"mean": 0.75}}
    made = [
        write_run(folder / "fedavg 1", CASES, metrics=metrics),
        write_run(folder / "both" / "seed-1", CASES, "algorithm=fedprox seed=1", best=None, metrics=metrics),
        write_run(folder / "third", CASES, "algorithm=fedprox algorithm.mu=0.5 seed=1", status="failed"),
        write_run(folder / "tune" / "trials" / "0000", CASES),
    ]
    (folder / "tune" / "search.yaml").touch()
    for number, run in enumerate(made):
        os.utime(run / "config.yaml", (number * 60, number * 60))
    (folder / "fedavg 1" / "report.html").touch()
    os.utime(folder / "tune" / "search.yaml", (600, 600))
    monkeypatch.setenv("RAYSIM_RUNS", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


def by_path(rows: list[RunRow]) -> dict[str, RunRow]:
    return {row.path: row for row in rows}


def test_the_newest_runs_are_first_and_trials_are_left_out(runs: Path) -> None:
    rows = list_runs(runs)
    assert [row.path for row in rows] == ["tune", "third", "both/seed-1", "fedavg 1"]
    found = by_path(rows)
    assert found["tune"].algorithm == "search"
    assert (found["third"].state, found["fedavg 1"].state, found["tune"].state) == ("failed", "done", "ended")
    assert found["fedavg 1"].differs == "seed=0"
    assert found["third"].differs == "seed=1 mu=0.5"
    assert found["both/seed-1"].score == "inside/test/dice 0.7500"  # of the last round, because there is no best one
    assert found["fedavg 1"].score == "inside/test/dice 0.7500"
    assert re.fullmatch(r"19\d\d-\d\d-\d\d \d\d:\d\d", found["fedavg 1"].date)


def test_runs_that_differ_only_in_the_algorithm_have_no_further_difference(runs: Path) -> None:
    (runs / "more").mkdir()
    write_run(runs / "more" / "fedavg", CASES)
    write_run(runs / "more" / "fedbn", CASES, "algorithm=fedbn")
    assert {row.differs for row in list_runs(runs / "more")} == {""}


def test_a_search_has_the_task_and_the_value_of_its_best_trial(runs: Path) -> None:
    text = "# Trial 3 of the search: done after 2 rounds.\n# best/inside/val/dice/mean: 0.51\n# digest: 12\n"
    (runs / "tune" / "best.yaml").write_text(f"{text}task: {{name: segmentation}}\n")
    row = by_path(list_runs(runs))["tune"]
    assert (row.task, row.score) == ("segmentation", "best/inside/val/dice/mean 0.5100")


def test_an_evaluation_is_no_run(runs: Path) -> None:
    write_run(runs / "other cases", CASES, run=str(runs / "third"))
    assert by_path(list_runs(runs))["other cases"].state == "evaluation"


def test_a_run_without_a_summary_has_not_ended(runs: Path) -> None:
    (runs / "third" / "summary.json").unlink()
    assert by_path(list_runs(runs))["third"].state == "unfinished"


def test_the_page_has_relative_links_and_no_scripts(runs: Path) -> None:
    write_index(runs / "third")
    page = (runs / "index.html").read_text()
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["fedavg%201/report.html"]
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "4 runs, the newest first" in page


def test_a_run_that_writes_the_page_at_its_end_has_ended(runs: Path) -> None:
    with exclusive_lock(runs / "fedavg 1"):
        assert by_path(list_runs(runs))["fedavg 1"].state == "done"
        (runs / "fedavg 1" / ".process").write_text('{"pid": 0, "host": "another"}')
        assert by_path(list_runs(runs))["fedavg 1"].state == "running"


def test_the_page_is_written_for_runs_in_the_folder_of_runs_alone(runs: Path, tmp_path: Path) -> None:
    write_index(tmp_path / "elsewhere")
    assert not list(tmp_path.glob("*.html"))
    assert not (runs / "index.html").exists()


def test_the_command_prints_the_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "seed=1 mu=0.5" in printed
    assert main(["runs", str(runs / "both")]) == 0
    assert "seed-1" in capsys.readouterr().out
    (runs / "none").mkdir()
    assert main(["runs", str(runs / "none")]) == 2
    assert "none has no runs; give a folder with runs" in capsys.readouterr().err
