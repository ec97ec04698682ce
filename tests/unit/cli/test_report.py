"""`raysim report`: the page of a run again, several runs side by side, and wrong arguments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from raysim.cli.main import main
from raysim.reporting.side_by_side import distinct_names
from tests.support.page import Page
from tests.support.plans import make_plan
from tests.support.toy_runs import on_local
from tests.unit.federation.test_model_export import synthetic


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str, algorithm: object) -> None:
    Path(name).mkdir()
    on_local(make_plan(Path(name), synthetic(), algorithm, rounds=1, metric="inside/val/dice"))
    Path(name, "config.yaml").write_text(f"algorithm: {{name: {type(algorithm).__name__.lower()}, lr: 0.02}}\n")


def test_one_run_and_several(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", LocalOnly(lr=0.02))
    run("b", FedAvg(lr=0.02))
    assert main(["report", "a"]) == 0
    assert "Pictures" in Page(Path("a/report.html")).text
    assert main(["report", "a", "b", "--out", "both.html"]) == 0
    assert capsys.readouterr().out == "report: a/report.html\nreport: both.html\n"
    page = Page(Path("both.html"))
    assert "algorithm.name localonly fedavg" in page.text
    assert "lr" not in page.text  # does not differ
    value = json.loads(Path("b/summary.json").read_text())["best"]["metrics"]["inside/test/dice"]["mean"]
    assert f"{value:.4f}" in page.text
    assert main(["report", "a", "b", "--out", "both.html"]) == 2
    assert "both.html already exists, and no file is overwritten" in capsys.readouterr().err
    assert main(["report", "a", "b", "--out", "none/both.html"]) == 2
    assert "none is not a folder; create it, or choose another one" in capsys.readouterr().err


def test_runs_with_the_same_name_are_distinguished_by_their_parents() -> None:
    assert distinct_names([Path("a/seed-0"), Path("a/seed-1")]) == ["seed-0", "seed-1"]
    assert distinct_names([Path("a/seed-0"), Path("b/seed-0")]) == ["a/seed-0", "b/seed-0"]
    assert distinct_names([Path("a"), Path("a")]) == ["a", "a"]


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("old").mkdir()
    Path("old/summary.json").write_text("{}")
    for arguments, text in (
        (["missing"], "missing is not a folder"),
        (["empty"], "empty has no summary.json"),
        (["old"], "old/summary.json is not the summary of a run"),
    ):
        assert main(["report", *arguments]) == 2
        assert text in capsys.readouterr().err
    run("a", LocalOnly(lr=0.02))
    assert main(["report", "a", "--out", "page.html"]) == 2
    assert "or give several runs" in capsys.readouterr().err
    shutil.copytree("a", "b")
    summary = json.loads(Path("a/summary.json").read_text()) | {"task": "tabular"}
    Path("b/summary.json").write_text(json.dumps(summary))
    assert main(["report", "a", "b"]) == 2
    assert "the runs have different tasks: a is a synthetic, b is a tabular" in capsys.readouterr().err
    assert not Path("side_by_side.html").exists()
