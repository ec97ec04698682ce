"""What a cluster with an autoscaler may still grow by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2

from raysim.core.errors import ConfigError
from raysim.distributed.resources import NodeResources, live_nodes

BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"  # what `ray up` leaves on the head
AUTOSCALER_VARIABLE = "RAYSIM_AUTOSCALER"  # where there is no such file: {max_workers: 8, resources: {CPU: 8, GPU: 1}}


def has_autoscaler() -> bool:
    """Whether the Ray that this process has joined has an autoscaler that may start nodes, as far as is known."""
    own = ray._private.worker._global_node  # of a Ray of this process alone, the head
    return not (own is not None and own.is_head()) and _config()[0] > 0


def provisionable_nodes() -> list[NodeResources]:
    """The nodes that the autoscaler may start beside those that are alive, the largest first."""
    if not has_autoscaler():
        return []
    alive = [each for each in ray.nodes() if each["Alive"] and "node:__internal_head__" not in each["Resources"]]
    return remaining_capacity(live_nodes(alive))


def remaining_capacity(workers: Sequence[NodeResources]) -> list[NodeResources]:
    """What may come beside these workers, of those kinds that there are not yet as many of as there may be."""
    most, kinds = _config()
    found = [kind for kind, count in kinds for _ in range(count)]
    for worker in workers:
        like = next((node for node in found if (node.cpus, node.gpus) == (worker.cpus, worker.gpus)), None)
        if like is not None:
            found.remove(like)
    found.sort(key=lambda node: (-node.gpus, -node.cpus))
    return found[: max(0, most - len(workers))]


def _config() -> tuple[int, list[tuple[NodeResources, int]]]:
    """How many workers there may be in all, and of each kind."""
    if text := os.environ.get(AUTOSCALER_VARIABLE):
        try:
            given = yaml.safe_load(text)
            most = int(given["max_workers"])
            return most, [(_node("node", given["resources"]), most)]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            wanted = "{max_workers: 8, resources: {CPU: 8, GPU: 1}}"
            raise ConfigError(f"{AUTOSCALER_VARIABLE}={text!r}: expected such as {wanted}") from error
    with suppress(OSError, yaml.YAMLError, KeyError):
        config = yaml.safe_load(Path(BOOTSTRAP_FILE).expanduser().read_text())
        return int(config["max_workers"]), list(_kinds(config))
    return 0, []


def _node(kind: str, has: Mapping[str, Any]) -> NodeResources:
    return NodeResources(f"new {kind}", float(has["CPU"]), float(has.get("GPU", 0)))


def _kinds(config: Mapping[str, Any]) -> Iterator[tuple[NodeResources, int]]:
    local = config["provider"]["type"] == "local"
    # One's own machines are taken to be like one of them that is there.
    here = next(each["Resources"] for each in ray.nodes() if each["Alive"]) if local else {}
    for name, kind in config["available_node_types"].items():
        if local or name != config["head_node_type"]:
            has = here if local else kind.get("resources", {})
            if "CPU" in has:
                yield _node(name, has), int(kind.get("max_workers", config["max_workers"]))


def nodes_starting() -> int | None:
    """How many nodes are being started; None where Ray does not say, as with an autoscaler of the older kind."""
    with suppress(Exception):
        if not is_autoscaler_v2():
            return None
        found = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=2)
        return len(found.pending_nodes) + sum(launch.count for launch in found.pending_launches)
    return None
