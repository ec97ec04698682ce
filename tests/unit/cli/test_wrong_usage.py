"""Wrong usage of any command: exit code 2, one line of output, no file written."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.cli.main import main


@pytest.mark.parametrize("arguments", [["rondus=3"], ["--rounds=3"], ["-c", "gone.yaml"], ["task=segmentation"]])
def test_the_doctor_refuses_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.startswith("raysim: ")


@pytest.mark.parametrize("user", ["me:s3cret", "s3cret"])
def test_a_password_in_a_url_is_refused_before_it_is_written(
    user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argument = f"task.data.table=https://{user}@store/table.csv"
    assert main(["run", "task=tabular", argument, "--out", str(tmp_path / "run")]) == 2
    output = capsys.readouterr().err
    assert "contains a password, a token or a signature; remove it" in output
    assert "s3cret" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["stop"], ["stop", "x", "--all"], ["stop", "x"], ["submit"], ["submit", "fly"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # submit would set it for later tests
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("raysim: ")


def test_only_a_run_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_chaos_is_refused_before_data_are_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    for text, part in (("kill it", "cannot read 'kill it'"), ("kill client@2", "backend=local has no actor")):
        assert main(["run", "backend=local", f"chaos={text}"]) == 2
        output = capsys.readouterr()
        assert part in output.err
        assert "preparing the data" not in output.out


def test_dropped_replies_are_refused_where_all_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "backend=local", "chaos=drop 0.1", "task.data.sites=2"]) == 2
    assert "set for example min_replies=0.5" in capsys.readouterr().err
