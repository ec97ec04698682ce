"""Runs and searches on a cluster with an autoscaler, which wait until the cluster has grown."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.support.hosts import Host, hosts

WORK = (
    *("task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4", "task.data.val=2"),
    *("task.data.test=2", "task.batch_size=2", "rounds=2", "resources.cpus_per_client=2", "ray_address=auto"),
)


KIND = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3}


FAKE = {  # Ray's provider of nodes that are processes of this machine
    "cluster_name": "fake",
    "max_workers": 3,
    "idle_timeout_minutes": 0.2,
    "upscaling_speed": 8.0,
    # Given by its module, because the wheel lacks the defaults of the type fake_multinode.
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": KIND,
    },
    "head_node_type": "ray.head.default",
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{f"{of}setup_commands": [] for of in ("", "head_", "worker_")},
    **{name: [] for name in ("initialization_commands", "cluster_synced_files")},
    **{f"{of}_start_ray_commands": [] for of in ("head", "worker")},
}


SETTINGS = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAYSIM_AUTOSCALER": "{max_workers: 3, resources: {CPU: 2}}",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("namespaces")
def test_a_run_and_a_search_wait_for_the_nodes_that_an_autoscaler_starts(tmp_path: Path) -> None:
    (tmp_path / "fake.yaml").write_text(json.dumps(FAKE))
    with hosts(tmp_path, 1) as (_, (head,)):

        def raysim(*arguments: str) -> str:
            done = head.run(sys.executable, "-m", "raysim", *arguments, env=SETTINGS, timeout=250)
            assert done.returncode == 0, done.stdout
            return str(done.stdout)

        where = ["--node-ip-address=10.77.0.1", "--include-dashboard=false", "--object-store-memory=200000000"]
        arguments = ["ray", "start", "--head", "--num-cpus=1", f"--autoscaling-config={tmp_path / 'fake.yaml'}", *where]
        started = head.run(*arguments, env=SETTINGS)
        assert started.returncode == 0, started.stdout
        output = raysim("run", *WORK, "resources.client_actors=3", "--out", str(tmp_path / "run"))
        assert "requested 3 x 2 CPU: 1 nodes of at most 4" in output
        assert re.search("[0-3] nodes starting, [0-9]+ s", output)
        places = json.loads((tmp_path / "run" / "placement.json").read_text())  # of the actors that started in time
        assert {place["node"] for place in places if "node" in place}
        until_alone(head)  # so that the search finds no node but the head
        search = ["--space", "algorithm.lr=grid(0.001,0.01)", "--searcher", "grid", "--out", str(tmp_path / "search")]
        assert "raysim requests nodes from its autoscaler" in raysim("tune", *WORK, *search)
        assert list(pd.read_parquet(tmp_path / "search" / "trials.parquet")["status"]) == ["done"] * 2


def until_alone(head: Host) -> None:
    """Wait until the idle workers have stopped."""
    code = "import ray; ray.init('auto', logging_level=40); print('alive', sum(n['Alive'] for n in ray.nodes()))"
    end = time.monotonic() + 180
    while "alive 1" not in (output := head.run(sys.executable, "-c", code, env=SETTINGS).stdout):
        assert time.monotonic() < end, output
        time.sleep(2)
