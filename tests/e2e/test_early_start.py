"""A local Ray is started while torch is imported; errors are those of a start at the usual time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysim.distributed import early_start
from tests.support.paths import ROOT

REFUSED = """
import sys
from raysim.cli.main import main
main(["run", *sys.argv[1:]])
print("reached")
"""


def test_a_process_with_torch_starts_no_ray_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import torch  # noqa: F401

    early_start.start_early(None)
    assert not early_start.is_started()
    early_start.exit_if_unused(3)  # has no effect


def test_a_command_that_joins_a_cluster_starts_no_ray_early() -> None:
    code = "from raysim.distributed import early_start as e; e.start_early('host:6379'); print(e.is_started())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
def test_a_run_that_is_refused_while_ray_starts_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, "algorithm.lr=-1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")  # the process ends before the next line
    assert done.stderr == "raysim: algorithm.lr=-1: expected a number greater than 0\n"


@pytest.mark.slow
def test_a_failed_start_is_reported_like_that_of_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "token").touch(mode=0o600)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone" / "token"),
    }
    arguments = [sys.executable, "-m", "raysim", "run", "rounds=1"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 3
    assert done.stderr.startswith("raysim: cannot start Ray: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
