"""Names and values for experiment trackers, and notices when a server does not accept them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.reporting.run_tracking import run_name
from raysim.reporting.tracked_runs import RunDescription, flatten, mlflow_name, one_line
from raysim.reporting.tracker import Tracker


def test_a_configuration_has_dotted_keys() -> None:
    values = {"seed": 1, "task": {"name": "synthetic", "data": {"size": [16, 16]}}, "resources": {"sites": {}}}
    assert dict(flatten(values)) == {
        "seed": 1,
        "task.name": "synthetic",
        "task.data.size": "[16, 16]",
        "resources.sites": "{}",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inside/val/dice@global/mean", "inside/val/dice:global/mean"),
        ("sites/Zürich (a)/val/dice", "sites/Zürich _a_/val/dice"),
    ],
)
def test_names_that_mlflow_accepts(name: str, expected: str) -> None:
    assert mlflow_name(name) == expected


def test_a_seed_has_the_name_of_its_parent(tmp_path: Path) -> None:
    assert run_name(tmp_path / "seed-0") == ("seed-0", tmp_path)
    (tmp_path / "fedbn").mkdir()
    (tmp_path / "fedbn" / "seeds.yaml").touch()
    assert run_name(tmp_path / "fedbn" / "seed-0") == ("fedbn-seed-0", tmp_path)


def test_an_error_is_one_line_without_secrets() -> None:
    assert one_line(ValueError("no\nanswer of http://user:geheim@host/x")) == "no answer of http://***@host/x"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert len(one_line(ValueError("x" * 1000))) == 200


def test_a_server_that_fails_gives_a_notice_and_one_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # without the package the import fails
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker("mlflow")
    assert tracker.start(tmp_path, RunDescription("one", "raysim", tmp_path, {}, {})) == 0
    for number in (1, 2):
        tracker.add(tmp_path, number, {"round": number, "loss": 0.5})
    tracker.end(tmp_path, "done", {})
    tracker.close()
    first, last = tracker.take_notices()
    assert first.startswith("mlflow does not accept data; the run continues: ")
    assert last == "mlflow does not have all rounds and files of one; the run directory has them"
    assert list(tmp_path.iterdir()) == []
