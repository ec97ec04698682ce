"""Submitted jobs: followed, watched and stopped from the submitting machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import LONG, command, lines_of, until

MINE = """
from dataclasses import dataclass

from algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    'FedAvg with another name.'
"""


@pytest.fixture
def submit(cluster: Any, address: str, tmp_path: Path) -> Callable[..., Any]:
    """`raysim submit` in a separate folder; results are fetched into `here`."""
    line = command("submit", "--address", f"http://{cluster.head_node.webui_url}")
    env = {**os.environ, "RAYSIM_RUNS": str(tmp_path / "here"), "COLUMNS": "300"}
    how: dict[str, Any] = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": False}
    return lambda *arguments: subprocess.run([*line, *arguments], **how, timeout=200)


@pytest.mark.slow
@pytest.mark.smoke
def test_a_submitted_run_is_followed_and_its_results_are_fetched(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    short = [*LONG[1:], "rounds=2", "algorithm=mine:Mine", f"ray_address={address}"]
    out = tmp_path / "there" / "first"
    first = submit("run", *short, f"--out={out}")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "round 2/2" in first.stdout.replace("  ", " ")
    (job,) = re.findall(r"^job (\S+):", first.stdout, re.M)
    fetched = tmp_path / "here" / job
    assert json.loads((fetched / "summary.json").read_text())["status"] == "done"
    assert (out / "checkpoints").is_dir()
    assert not (fetched / "checkpoints").exists()

    again = submit("--attach", job)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "here" / f"{job}-2" / "summary.json").exists()
    wrong = submit("run", *short, "algorithm.lr=-1")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr
    missing = submit("--attach", "raysim-missing")
    assert missing.returncode == 2
    assert "no job raysim-missing" in missing.stderr


@pytest.mark.slow
def test_a_submitted_run_is_watched_and_stopped_from_the_submitting_machine(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    started = submit("--detach", "run", *LONG, f"ray_address={address}", "--out", str(tmp_path / "there"))
    (job,) = re.findall(r"^job (\S+):", started.stdout, re.M)
    assert until(lambda: lines_of(tmp_path / "there" / "log.jsonl") > 1, 150)
    assert until(lambda: re.search(r"there-\w+ .* [1-9]\d*/100000", submit("status", "there").stdout), 150)
    ended = submit("stop", "there")
    assert re.search(r"there-\w+ has ended", ended.stdout), ended.stdout + ended.stderr
    cut = submit("--attach", job)
    assert cut.returncode == 130, cut.stdout + cut.stderr
    assert json.loads((tmp_path / "here" / job / "summary.json").read_text())["status"] == "interrupted"
