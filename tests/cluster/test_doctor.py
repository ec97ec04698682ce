"""The doctor on a Ray of two nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    *("task.data.sites=3", "task.data.size=[16,16]", "task.data.cases=4", "task.data.test=2", "task.data.val=0"),
    *("network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture(scope="module")
def two_nodes(cluster: Any) -> Iterator[str]:
    """The address of the cluster with a second node, which declares two GPUs that it does not have."""
    node = cluster.add_node(num_cpus=2, num_gpus=2)
    yield cluster.address
    cluster.remove_node(node)


CASES = [
    ("resources.gpus_per_client=0.5", 1, "ok +2 client actors of"),  # the node with GPUs has 2 CPUs
    ("resources.cpus_per_client=99", 3, "wrong +requested 1 client actor of 99"),
]


@pytest.mark.slow  # under load, a new node may import torch for longer than the time limit of its answer
@pytest.mark.parametrize(("arguments", "code", "verdict"), CASES)
def test_on_a_ray_of_two_nodes(
    arguments: str, code: int, verdict: str, two_nodes: str, working_directory: Path
) -> None:
    command = [sys.executable, "-m", "raysim", "doctor", *SMALL, f"ray_address={two_nodes}", arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (code, False)
    assert re.search(rf"Ray +ok +\S+ at {two_nodes}, joined; dashboard \S+", done.stdout)
    assert len(re.findall(r"node +ok +\S+ \(\w{6}\): [12] CPU, [02] GPU, ", done.stdout)) == 2
    assert re.search(r"GPU +wrong +.* torch can use no GPU; Ray assigns 2", done.stdout)
    assert re.search(r"versions +ok +python .*; the same on 2 nodes", done.stdout)
    assert re.search(rf"resources +{verdict}", done.stdout)
    assert re.search(r"a step +\d.* s with 1 thread", done.stdout)
    assert re.search(
        r"^  resources.client_actors=[123] resources.cpus_per_client=[12] resources.gpus_per_client=0$",
        done.stdout,
        re.M,
    )
    assert not (working_directory / "runs").exists()


@pytest.mark.slow
def test_the_doctor_does_not_wait_for_the_autoscaler(two_nodes: str) -> None:
    arguments = ["doctor", *SMALL, f"ray_address={two_nodes}", "resources.cpus_per_client=64"]
    environment = {**os.environ, "COLUMNS": "200", "RAYSIM_AUTOSCALER": "{max_workers: 2, resources: {CPU: 64}}"}
    command = [sys.executable, "-m", "raysim", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert re.search(
        r"resources +note +not enough free resources for 1 client actor yet; .* autoscaler, which can add 1; no batch",
        done.stdout,
    )
    assert "one batch" not in done.stdout
    assert done.returncode == 1  # because of the missing GPUs
