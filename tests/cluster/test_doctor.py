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


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=2)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of two nodes, one with two GPUs that are not there."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as process:
        assert process.stdout
        assert process.stdin
        yield next(line.split()[1] for line in process.stdout if line.startswith("address "))
        process.stdin.close()


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        (["resources.gpus_per_client=0.5"], 1, "ok +1 client actor of"),
        (["resources.cpus_per_client=99"], 3, "wrong +asked for 1 client actor of 99"),
    ],
)
def test_on_a_ray_of_two_nodes(
    words: list[str], code: int, verdict: str, cluster: str, working_directory: Path
) -> None:
    command = [sys.executable, "-m", "raysim", "doctor", *SMALL, f"ray_address={cluster}", *words]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (code, False)
    assert re.search(rf"Ray +note +\S+ at {cluster}, joined; dashboard none", done.stdout)
    assert len(re.findall(r"node +ok +\S+ \(\w{6}\): [12] CPU, [02] GPU, ", done.stdout)) == 2
    assert re.search(r"GPU +wrong +.* torch can use none; Ray was told of 2", done.stdout)
    assert re.search(r"versions +ok +python .*; the same on 2 nodes", done.stdout)
    assert re.search(rf"resources +{verdict}", done.stdout)
    assert re.search(r"a step +\d.* s with 1 thread", done.stdout)
    assert re.search(
        r"^  resources.client_actors=[123] resources.cpus_per_client=[12] resources.gpus_per_client=0$",
        done.stdout,
        re.M,
    )
    assert not (working_directory / "runs").exists()


def test_what_an_autoscaler_would_bring_is_not_waited_for(cluster: str) -> None:
    words = ["doctor", *SMALL, f"ray_address={cluster}", "resources.cpus_per_client=64"]
    environment = {**os.environ, "COLUMNS": "200", "RAYSIM_AUTOSCALER": "{max_workers: 2, resources: {CPU: 64}}"}
    command = [sys.executable, "-m", "raysim", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert re.search(r"resources +note +no room for 1 client actor yet: .*, of which 1 more may come", done.stdout)
    assert "one batch" not in done.stdout
    assert done.returncode == 1  # for the GPUs that are not there
