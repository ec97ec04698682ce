"""Several nodes of real Ray on one machine: declared GPUs, killed nodes, and objects that are lost with a node."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from raysim.core.results import FailureAction

pytestmark = pytest.mark.timeout(600)


SMALL = (
    *("rounds=4", "task.data.sites=5", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2", "site_timeout_s=300"),
)


# Above the size from which Ray keeps objects on the node that created them, so that they are lost with the node.
LARGE = "network={name: unet, channels: [32, 64], strides: [2], num_res_units: 2}"


def run(folder: Path, *arguments: str) -> Any:
    """The summary and the output of `raysim run`, which must succeed."""
    command = [sys.executable, "-m", "raysim", "run", *SMALL, *arguments, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"output": done.stdout, **json.loads((folder / "summary.json").read_text())}


def places(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "placement.json").read_text())
    return found


def failures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_shares_of_declared_gpus_are_respected_and_shown(cluster: Any, nodes: Any, tmp_path: Path) -> None:
    nodes(num_cpus=4, num_gpus=2)
    nodes(num_cpus=4, num_gpus=1)
    out = tmp_path / "run"
    arguments = ("resources.gpus_per_client=0.5", "resources.cpus_per_client=0.5", "resources.sites.site-03.gpus=1")
    found = run(out, f"ray_address={cluster.address}", "rounds=1", *arguments)
    by_site = {place["site"]: place for place in places(out)}
    assert by_site["site-03"]["gpus"] == 1
    assert [place["actor"] for place in by_site.values()].count(by_site["site-03"]["actor"]) == 1
    actors = {place["actor"]: place for place in places(out)}
    assert len(actors) == 5  # four shared ones and a dedicated one: 4 x 0.5 + 1 of 3 GPUs
    load: dict[tuple[str, str], float] = {}
    for place in actors.values():
        (gpu,) = place["gpu_ids"]
        load[place["node"], gpu] = load.get((place["node"], gpu), 0.0) + place["gpus"]
    assert sorted(load.values()) == [1.0, 1.0, 1.0]
    assert "1 of GPU" in found["output"]
    assert "torch finds no GPU" in found["output"]


@pytest.mark.slow
def test_more_gpus_than_the_nodes_have_are_refused(cluster: Any, nodes: Any, tmp_path: Path) -> None:
    nodes(num_cpus=4, num_gpus=2)
    command = [
        sys.executable,
        "-m",
        "raysim",
        "run",
        *SMALL,
        f"ray_address={cluster.address}",
        "--out",
        str(tmp_path / "x"),
    ]
    arguments = ("resources.gpus_per_client=0.7", "resources.client_actors=3")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert "requested 3 client actors of 1 CPU and 0.7 GPU each; 2 fit onto the cluster" in done.stderr
    assert "4 CPU, 2 GPU" in done.stderr
    assert (
        "What would fit: resources.client_actors=2, or resources.client_actors=auto, or resources.gpus_per_client=0.5"
        in done.stderr
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", pytest.param("localonly", marks=pytest.mark.smoke)])
def test_a_killed_node_changes_no_bit(cluster: Any, nodes: Any, algorithm: str, tmp_path: Path) -> None:
    nodes(num_cpus=2)
    nodes(num_cpus=2)
    arguments = (f"algorithm={algorithm}", LARGE, "checkpoint_every=2", "rounds=6")
    calm = run(tmp_path / "calm", "backend=local", *arguments)
    out = tmp_path / "run"
    found = run(out, f"ray_address={cluster.address}", "resources.client_actors=3", 'chaos="kill node@4"', *arguments)
    assert found["digest"] == calm["digest"]
    actions = {failure["action"] for failure in failures(out)}
    assert actions
    assert actions <= {FailureAction.RETRIED, FailureAction.ROLLED_BACK}
    # The client states of round 3 were only on the lost node: the run returns to the last checkpoint.
    assert algorithm == "fedavg" or FailureAction.ROLLED_BACK in actions
    assert found["failures"]["incidents"] == len(failures(out))
    alive = {node["NodeID"] for node in living(cluster)}
    assert {place["node"] for place in places(out) if "node" in place} <= alive  # its actor may not be up again yet


def living(cluster: Any) -> list[dict[str, Any]]:
    """The live nodes, listed by another process."""
    code = "import json, ray, sys; ray.init(sys.argv[1], logging_level=40); print(json.dumps(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code, cluster.address], capture_output=True, text=True, check=True)
    return [node for node in json.loads(done.stdout.splitlines()[-1]) if node["Alive"]]


@pytest.mark.slow
@pytest.mark.smoke
def test_a_node_with_another_version_is_refused_by_name(cluster: Any, nodes: Any, tmp_path: Path) -> None:
    other = tmp_path / "other" / "monai-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: monai\nVersion: 0.0.1\n")
    nodes(num_cpus=2, env_vars={"PYTHONPATH": str(other.parent)})
    command = [sys.executable, "-m", "raysim", "run", *SMALL, f"ray_address={cluster.address}", "--out"]
    done = subprocess.run([*command, tmp_path / "run"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("raysim: ")]
    (worker,) = cluster.worker_nodes
    assert f"({worker.node_id[:6]}): monai 0.0.1 (here {version('monai')})" in error
    assert not (tmp_path / "run").exists()
