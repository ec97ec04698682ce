"""The check of all nodes before a run: each reports its versions and the paths that it can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.contracts import Task
from raysim.core.errors import PlacementError
from raysim.core.events import Notice
from raysim.data.required_paths import required_paths
from raysim.distributed import node_checks, node_probe, ray_compat
from raysim.distributed.node_checks import NodeReport, Verdict
from raysim.distributed.ray_errors import summarize
from raysim.distributed.timeouts import NODE_PROBE_TIMEOUT_S

PORTS = ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort", "MetricsAgentPort", "RuntimeEnvAgentPort")


def check_cluster(task: Task, config: Any, more: Sequence[str] = ()) -> Iterator[Notice]:
    """Yield a notice for each node that does not answer. `config` is that of the task; all nodes must also read `more`.

    Raises PlacementError, with the names of the nodes, if nodes have other versions or cannot read the data.
    """
    reads, writes = required_paths(task, config)
    reads = [*reads, *more]
    nodes = probe_nodes(node_probe.probe_without_torch, reads, writes)
    facts = node_checks.probed_facts(nodes)
    checks = [*node_checks.of_versions(facts, node_probe.versions()), *node_checks.of_paths(facts, reads, writes)]
    if wrong := [check for check in checks if check.verdict is Verdict.WRONG]:
        cures = "; ".join(dict.fromkeys(check.cure for check in wrong))
        raise PlacementError(f"{'; '.join(check.found for check in wrong)}. {cures}")
    for node in nodes:
        if node.facts is None:
            yield Notice(f"{node.name}: {node.error}; raysim could not check its versions and data")


def probe_nodes(
    function: Callable[..., dict[str, Any]], reads: Sequence[str], writes: Sequence[str], head_ports: Sequence[int] = ()
) -> list[NodeReport]:
    """A report of each live node: the result of `function`, one of `node_probe`, or the reason why it has none."""
    ray.cloudpickle.register_pickle_by_value(node_probe)  # so that a node without raysim also answers
    listed = [node for node in ray.nodes() if node["Alive"]]
    refs = [_start_probe(function, node, reads, writes, head_ports) for node in listed]
    ready, late = ray.wait(refs, num_returns=len(refs), timeout=NODE_PROBE_TIMEOUT_S)
    for ref in late:
        ray.cancel(ref, force=True)
    names = [node["NodeManagerAddress"] for node in listed]
    return [
        node_report(
            name if names.count(name) == 1 else f"{name} ({node['NodeID'][:6]})", node["Resources"], ref, ref in ready
        )
        for name, node, ref in zip(names, listed, refs, strict=True)
    ]


def _start_probe(
    function: Callable[..., dict[str, Any]],
    node: Mapping[str, Any],
    reads: Sequence[str],
    writes: Sequence[str],
    head_ports: Sequence[int],
) -> Any:
    ports = [node[port] for port in PORTS if node.get(port)]
    ports += head_ports if ray_compat.is_head(node) else []
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote: Any = ray.remote(max_calls=1)(function)
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there, "name": "node probe"}
    return remote.options(**options).remote(reads, writes, ports, str(ray_compat.session_directory(node)))


def node_report(name: str, resources: Mapping[str, float], ref: Any, ready: bool) -> NodeReport:
    """The report of a node with these `resources`. `ref` is its probe, which has ended if it is `ready`."""
    facts, fault = None, f"no answer within {NODE_PROBE_TIMEOUT_S:g} s"
    try:
        facts = ray.get(ref) if ready else None
    except RayError as error:
        fault = summarize(error)
    sizes = resources.get("memory", 0.0), resources.get("object_store_memory", 0.0)
    return NodeReport(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), *sizes, facts, fault)
