"""Status and stop of a run of this machine, from another terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raysim.cli.main import main
from tests.support.commands import LONG, running, until


def test_a_run_of_this_machine_is_found_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "runs" / "first"
    with running(*LONG[:-1], "backend=local", "--out", str(out)) as run:
        assert until(lambda: run.poll() is not None or (out / "log.jsonl").exists())
        assert main(["status"]) == 0
        assert re.search(r"first +fedavg on synthetic", capsys.readouterr().out)
        assert main(["stop", "runs/first"]) == 0
        assert capsys.readouterr().out == "runs/first has ended\n"
        run.communicate(timeout=60)
        assert run.returncode == 130
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert main(["stop", "runs/first"]) == 2
    assert not (out / ".process").exists()
