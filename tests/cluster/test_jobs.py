"""Submitted jobs: followed, watched and stopped from the submitting machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import command, until

CLUSTER: list[Any] = []  # this file's Ray


LONG = (
    *("rounds=100000", "task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2", "resources.client_actors=2"),
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of one node that others may join."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # jobs find this Python
        # The usual ports may be those of a Ray that other tests start; 0 is any free one, but for the dashboard's.
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports = {"dashboard_port": free.getsockname()[1], "dashboard_agent_listen_port": 0}
        head = {"num_cpus": 3, "num_gpus": 0, "include_dashboard": True, **ports}
        made = Cluster(initialize_head=True, head_node_args=head)
    CLUSTER.append(made)
    yield made.address
    made.shutdown()


MINE = """
from dataclasses import dataclass

from algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    'FedAvg by another name.'
"""


@pytest.fixture
def submit(address: str, tmp_path: Path) -> Callable[..., Any]:
    """`raysim submit` in a folder of its own, where results come back to `here`."""
    line = command("submit", "--address", f"http://{CLUSTER[0].head_node.webui_url}")
    env = {**os.environ, "RAYSIM_RUNS": str(tmp_path / "here"), "COLUMNS": "300"}
    how: dict[str, Any] = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": False}
    return lambda *words: subprocess.run([*line, *words], **how, timeout=200)


def test_a_submitted_run_is_followed_and_its_results_come_back(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    short = [*LONG[1:], "rounds=2", "algorithm=mine:Mine", f"ray_address={address}"]
    out = tmp_path / "there" / "first"
    done = submit("run", *short, f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2/2" in done.stdout.replace("  ", " ")
    (job,) = re.findall(r"^job (\S+):", done.stdout, re.M)
    mine = tmp_path / "here" / job
    assert json.loads((mine / "summary.json").read_text())["status"] == "done"
    assert (out / "checkpoints").is_dir()
    assert not (mine / "checkpoints").exists()

    again = submit("--attach", job)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "here" / f"{job}-2" / "summary.json").exists()
    wrong = submit("run", *short, "algorithm.lr=-1")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr
    nobody = submit("--attach", "raysim-nobody")
    assert nobody.returncode == 2
    assert "no job raysim-nobody" in nobody.stderr


def test_a_submitted_run_is_watched_and_ended_from_where_it_was_sent(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    begun = submit("--detach", "run", *LONG, f"ray_address={address}", "--out", str(tmp_path / "there"))
    (job,) = re.findall(r"^job (\S+):", begun.stdout, re.M)
    assert until(lambda: re.search(r"there-\w+ .* [1-9]\d*/100000", submit("status", "there").stdout), 150)
    ended = submit("stop", "there")
    assert re.search(r"there-\w+ has ended", ended.stdout), ended.stdout + ended.stderr
    cut = submit("--attach", job)
    assert cut.returncode == 130, cut.stdout + cut.stderr
    assert json.loads((tmp_path / "here" / job / "summary.json").read_text())["status"] == "interrupted"
