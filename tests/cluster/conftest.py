"""One Ray cluster with a dashboard for all tests of this folder; each test adds the nodes that it needs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import why_not

# A killed node is declared dead within seconds, not after Ray's half minute; metrics are exported each second.
SETTINGS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_metrics_report_interval_ms": "1000",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # jobs find this Python
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A head with one CPU and no GPU: `cluster.address`, `cluster.head_node`, `cluster.worker_nodes`."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        # Another Ray of this machine may use the default ports. 0 means any free port, except for the dashboard.
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports = {"dashboard_port": free.getsockname()[1], "dashboard_agent_listen_port": 0}
        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": True, **ports}
        made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Add a node with the given resources; nodes that are left after the test are removed."""
    added: list[Any] = []

    def add(**has: Any) -> Any:
        added.append(cluster.add_node(**{"num_gpus": 0} | has))
        return added[-1]

    yield add
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip tests that need hosts if this machine cannot create them."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def address(cluster: Any) -> Iterator[str]:
    """The address of a cluster of two nodes, with one and with two CPUs."""
    node = cluster.add_node(num_cpus=2, num_gpus=0)
    yield cluster.address
    cluster.remove_node(node)
