"""A search whose trials train in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.searches import LR, TINY, left_behind, trials, tune

pytestmark = pytest.mark.usefixtures("ray_started")
VALUE = "best/inside/val/dice/mean"


@pytest.mark.parametrize("batch", ["3", pytest.param("auto", marks=pytest.mark.slow)])
def test_trials_in_batches_have_the_results_of_single_ones(batch: str, tmp_path: Path) -> None:
    arguments = ("--space", LR, "--trials", "3", "rounds=3", "resources.batch_sites=1")
    assert tune(tmp_path / "batches", *arguments, "--batch-trials", batch) == 0
    assert left_behind() == []
    assert tune(tmp_path / "single", *arguments) == 0
    found, expected = trials(tmp_path / "batches"), trials(tmp_path / "single")
    assert list(found["status"]) == ["done"] * 3
    assert list(found["algorithm.lr"]) == list(expected["algorithm.lr"])
    assert list(found[VALUE]) == pytest.approx(list(expected[VALUE]), abs=1e-3)


@pytest.mark.slow
def test_asha_stops_trials_of_a_batch(tmp_path: Path) -> None:
    space = "algorithm.lr=grid(1e-6,1e-5,1e-4,1e-3,1e-2,1e-1)"
    arguments = ("--space", space, "--searcher", "grid", "--scheduler", "asha", "rounds=9", "--batch-trials", "3")
    assert tune(tmp_path / "out", *arguments) == 0
    status = list(trials(tmp_path / "out")["status"])
    assert "stopped" in status
    assert "done" in status
    assert set(status) <= {"done", "stopped"}


def test_client_actors_are_refused_in_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pair in ("backend=ray", "resources.client_actors=2"):
        arguments = [each for each in TINY if not each.startswith("backend")]
        assert tune(tmp_path / "out", *arguments, "--space", LR, pair, "--batch-trials", "4") == 2
        assert "remove --batch-trials" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
