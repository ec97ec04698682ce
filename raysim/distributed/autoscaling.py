"""The nodes that the autoscaler of a cluster can still start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import yaml

from raysim.core.errors import ConfigError
from raysim.distributed import ray_compat
from raysim.distributed.resources import NodeResources, live_nodes

BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"  # `ray up` writes it on the head
AUTOSCALER_VARIABLE = "RAYSIM_AUTOSCALER"  # instead of that file: {max_workers: 8, resources: {CPU: 8, GPU: 1}}


def has_autoscaler() -> bool:
    """Whether the connected Ray cluster is known to have an autoscaler that can start nodes."""
    return not ray_compat.started_here() and _worker_limits()[0] > 0


def provisionable_nodes() -> list[NodeResources]:
    """The nodes that the autoscaler can start in addition to the live ones, the largest first."""
    if not has_autoscaler():
        return []
    workers = [node for node in ray.nodes() if node["Alive"] and not ray_compat.is_head(node)]
    return remaining_capacity(live_nodes(workers))


def remaining_capacity(workers: Sequence[NodeResources]) -> list[NodeResources]:
    """The nodes that can join these workers: of each type, its limit minus the workers of that type."""
    max_workers, types = _worker_limits()
    remaining = [node for node, limit in types for _ in range(limit)]
    for worker in workers:
        match = next((node for node in remaining if (node.cpus, node.gpus) == (worker.cpus, worker.gpus)), None)
        if match is not None:
            remaining.remove(match)
    remaining.sort(key=lambda node: (-node.gpus, -node.cpus))
    return remaining[: max(0, max_workers - len(workers))]


def _worker_limits() -> tuple[int, list[tuple[NodeResources, int]]]:
    """The maximum number of workers in total, and of each type."""
    if text := os.environ.get(AUTOSCALER_VARIABLE):
        try:
            limits = yaml.safe_load(text)
            max_workers = int(limits["max_workers"])
            return max_workers, [(_new_node("node", limits["resources"]), max_workers)]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            expected = "{max_workers: 8, resources: {CPU: 8, GPU: 1}}"
            raise ConfigError(f"{AUTOSCALER_VARIABLE}={text!r}: expected a value such as {expected}") from error
    with suppress(OSError, yaml.YAMLError, KeyError):
        config = yaml.safe_load(Path(BOOTSTRAP_FILE).expanduser().read_text())
        return int(config["max_workers"]), list(_node_types(config))
    return 0, []


def _new_node(name: str, resources: Mapping[str, Any]) -> NodeResources:
    return NodeResources(f"new {name}", float(resources["CPU"]), float(resources.get("GPU", 0)))


def _node_types(config: Mapping[str, Any]) -> Iterator[tuple[NodeResources, int]]:
    local = config["provider"]["type"] == "local"
    # The file does not contain the resources of on-premise machines: all are assumed to equal a live one.
    live = next(node["Resources"] for node in ray.nodes() if node["Alive"]) if local else {}
    for name, node_type in config["available_node_types"].items():
        if local or name != config["head_node_type"]:
            resources = live if local else node_type.get("resources", {})
            if "CPU" in resources:
                yield _new_node(name, resources), int(node_type.get("max_workers", config["max_workers"]))


def nodes_starting() -> int | None:
    """The number of nodes that are starting; None if Ray does not report it."""
    with suppress(Exception):
        return ray_compat.pending_node_count()
    return None
