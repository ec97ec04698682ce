"""`raysim run --seeds`: a folder for each seed, the table at the end, and how to continue after a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysim.cli.main import main
from raysim.reporting.comparison import CompareOptions, compare

SMALL = [
    "rounds=1",
    "task.data.sites=2",
    "task.data.outside=[]",
    "task.data.cases=4",
    "task.data.size=[16,16]",
    "backend=local",
]
FAILING = """
from dataclasses import dataclass
from pathlib import Path

from algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Failing(FedAvg):
    def round(self, fleet, state):
        calls = Path("calls")
        calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
        if len(calls.read_text()) == 2:
            raise RuntimeError("a fault of the test")
        return super().round(fleet, state)
"""


def digest(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["digest"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_every_seed_is_an_ordinary_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--seeds", "2", "--out", "both", "seed=3", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in Path("both").iterdir()) == ["seed-3", "seed-4", "seeds.yaml"]
    assert "inside/test/dice of the best round: mean ± standard deviation over seeds" in printed
    assert "to compare with other runs: raysim compare" in printed
    (group,) = compare([Path("both")], CompareOptions()).groups
    summaries = [json.loads((run / "summary.json").read_text()) for run in Path("both").glob("seed-*")]
    means = [summary["best"]["metrics"]["inside/test/dice"]["mean"] for summary in summaries]
    assert group.mean == pytest.approx(sum(means) / 2, rel=1e-12)
    assert main(["run", "--out", "single", "seed=4", *SMALL]) == 0
    assert digest(Path("single")) == digest(Path("both/seed-4"))
    # A seed that was interrupted after its last round ends with the same digest.
    (Path("both/seed-4") / "summary.json").unlink()
    assert main(["resume", "both"]) == 0
    assert digest(Path("single")) == digest(Path("both/seed-4"))


def test_a_refused_run_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--seeds", "2", "metric=inside/test/dise", *SMALL]) == 2
    assert main(["run", "--seeds", "0", *SMALL]) == 2
    assert "--seeds 0: expected the number of seeds, 1 or more" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_after_a_failure_the_other_seeds_can_be_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("failing.py").write_text(FAILING)
    assert main(["run", "--seeds", "3", "--out", "three", "algorithm=failing:Failing", *SMALL]) == 1
    printed = capsys.readouterr()
    assert "a fault of the test" in printed.err
    assert "to continue with all seeds: raysim resume" in printed.out
    assert sorted(path.name for path in Path("three").iterdir()) == [
        "seed-0",
        "seeds.yaml",
    ]  # seed 1 has trained nothing
    first = digest(Path("three/seed-0"))
    assert main(["resume", "three"]) == 0
    assert "seed 0," not in capsys.readouterr().out
    assert digest(Path("three/seed-0")) == first
    assert len({digest(path) for path in Path("three").glob("seed-*/")}) == 3
