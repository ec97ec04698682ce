"""The report of a search: the pictures of its best trial, and `raysim report SEARCH`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysim import run
from raysim.cli.main import main
from raysim.config.merge import parse_pairs
from raysim.config.yaml_loader import load_written_yaml
from raysim.search.request import build_request, write_request
from raysim.search.results import SearchResults
from raysim.search.space import Space, from_cli
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds
from raysim.storage.run_directory import exclusive_lock
from tests.support.page import Page
from tests.support.searches import LR, TINY, searched

RATES = {1: 0.001, 2: 0.03}


def killed_search(out: Path) -> SearchResults:
    """A search with two finished trials that was killed before it wrote its tables."""
    out.mkdir()
    search = searched(out, "rounds=2")
    write_request(out, build_request(Space(from_cli([LR])), {}, parse_pairs(["rounds=2", *TINY]), {}))
    results = SearchResults(search, [], "best")
    for number, rate in RATES.items():
        values: dict[str, Any] = {"algorithm.lr": rate}
        results.start_trial(number, values)
        trial = TrialRounds(search, number, values, TrialCache(search))
        while not (row := trial.step())["done"]:
            results.add_round(number, row)
        results.add_round(number, row)
    return results


@pytest.mark.slow  # writes the reports of a search and of a run
def test_the_report_of_a_killed_search_has_the_pictures_of_its_best_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (best,) = killed_search(tmp_path / "search").best()
    assert main(["report", "search"]) == 0
    assert f"report: {tmp_path / 'search' / 'report.html'}" in capsys.readouterr().out
    text = Page(tmp_path / "search" / "report.html").text
    assert f"Trial {best.number}, the best" in text
    assert "site-01 (inside)" in text
    assert len(pd.read_parquet("search/trials.parquet")) == len(RATES)
    keys = load_written_yaml(Path("search/best.yaml").read_text(), "best.yaml")
    again = run(keys, backend="local", out="again")
    assert again.digest == best.digests[""]
    drawn, expected = Path(f"search/trials/{best.number:04}/pictures"), Path("again/pictures")
    files = sorted(path.name for path in expected.iterdir())
    assert files == sorted(path.name for path in drawn.iterdir())
    assert len(files) > 3
    for name in files:
        assert (drawn / name).read_bytes() == (expected / name).read_bytes()
    other = 1 if best.number == 2 else 2
    assert not Path(f"search/trials/{other:04}/pictures").exists()


def test_reports_of_searches_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search").mkdir()
    write_request(Path("search"), build_request(Space(from_cli([LR])), {}, parse_pairs(TINY), {}))
    assert main(["report", "search", "--out", "page.html"]) == 2
    assert "remove --out" in capsys.readouterr().err
    assert main(["report", "search", "search"]) == 2
    assert "it has the trials of a search; give one of them" in capsys.readouterr().err
    with exclusive_lock(Path("search")):
        assert main(["report", "search"]) == 2
    assert "another process is using" in capsys.readouterr().err
    assert not Path("search/report.html").exists()
