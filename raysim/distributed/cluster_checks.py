"""What the nodes of a cluster say of themselves, and whether a run can be on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.contracts import Task
from raysim.core.errors import PlacementError
from raysim.core.events import Notice
from raysim.data.required_paths import required_paths
from raysim.distributed import diagnostics, node_probe
from raysim.distributed.diagnostics import NodeReport
from raysim.distributed.ray_errors import remote_cause

KNOCK = 20.0  # seconds for a node to say what it is
PORTS = ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort", "MetricsAgentPort", "RuntimeEnvAgentPort")


def check_cluster(task: Task, config: Any, more: Sequence[str] = ()) -> Iterator[Notice]:
    """A note for each node that says nothing. `config` is that of the task; `more` are files that all nodes read.

    Raises PlacementError, with their names, if nodes have other versions than this command or cannot read the data.
    """
    read, written = required_paths(task, config)
    nodes = probe_nodes(node_probe.probe_without_torch, read := [*read, *more], written)
    facts = diagnostics.probed_facts(nodes)
    found = [*diagnostics.of_versions(facts, node_probe.versions()), *diagnostics.of_paths(facts, read, written)]
    if wrong := [check for check in found if check.verdict == "wrong"]:
        cures = "; ".join(dict.fromkeys(check.cure for check in wrong))
        raise PlacementError(f"{'; '.join(check.found for check in wrong)}. {cures}")
    for each in nodes:
        if each.facts is None:
            yield Notice(
                f"{each.name}: {each.silence}; whether it has the versions and the data of this command is not known"
            )


def probe_nodes(
    ask: Callable[..., dict[str, Any]], read: Sequence[str], written: Sequence[str], head_ports: Sequence[int] = ()
) -> list[NodeReport]:
    """Every live node, and what `ask`, a function of `node_probe`, answers there, if it does in time."""
    ray.cloudpickle.register_pickle_by_value(node_probe)  # a node without raysim is to answer too
    listed = [each for each in ray.nodes() if each["Alive"]]
    refs = []
    for each in listed:
        ports = [each[port] for port in PORTS if each.get(port)]
        ports += head_ports if "node:__internal_head__" in each["Resources"] else []
        session = str(Path(each["ObjectStoreSocketName"]).parent.parent)
        there = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        remote: Any = ray.remote(max_calls=1)(ask)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there, "name": "what is this node?"}
        refs.append(remote.options(**options).remote(read, written, ports, session))
    ready, late = ray.wait(refs, num_returns=len(refs), timeout=KNOCK)
    for ref in late:
        ray.cancel(ref, force=True)
    names = [each["NodeManagerAddress"] for each in listed]
    return [
        _node(
            name if names.count(name) == 1 else f"{name} ({each['NodeID'][:6]})", each["Resources"], ref, ref in ready
        )
        for name, each, ref in zip(names, listed, refs, strict=True)
    ]


def _node(name: str, has: Mapping[str, float], ref: Any, ready: bool) -> NodeReport:
    facts, silence = None, f"no answer within {KNOCK:g} s"
    try:
        facts = ray.get(ref) if ready else None
    except RayError as error:
        silence = remote_cause(error)
    sizes = has.get("memory", 0.0), has.get("object_store_memory", 0.0)
    return NodeReport(name, has.get("CPU", 0.0), has.get("GPU", 0.0), *sizes, facts, silence)
