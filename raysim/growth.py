"""What a cluster with an autoscaler may still grow by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.v2.sdk import get_cluster_status

from raysim.errors import ConfigError
from raysim.placement import Node

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # what `ray up` leaves on the head
GROWS = "RAYSIM_GROWS"  # where there is no such file: {max_workers: 8, resources: {CPU: 8, GPU: 1}}


def coming(alive: int) -> list[Node]:
    """The nodes that the autoscaler may start beside those that are `alive`; none where it is not known of one."""
    most, kinds = _config()
    left = most - (alive - 1)  # one is the head
    found = [
        Node(f"new {name}", float(has["CPU"]), float(has.get("GPU", 0))) for name, has, n in kinds for _ in range(n)
    ]
    return found[: max(0, left)]


def _config() -> tuple[int, list[tuple[str, Mapping[str, Any], int]]]:
    """How many workers there may be, and of each kind its name, resources and how many of it."""
    if text := os.environ.get(GROWS):
        try:
            given = yaml.safe_load(text)
            return int(given["max_workers"]), [("node", dict(given["resources"]), int(given["max_workers"]))]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            wanted = "{max_workers: 8, resources: {CPU: 8, GPU: 1}}"
            raise ConfigError(f"{GROWS}={text!r}: expected such as {wanted}") from error
    with suppress(OSError, yaml.YAMLError, KeyError):
        config = yaml.safe_load(Path(BOOTSTRAP).expanduser().read_text())
        return int(config["max_workers"]), list(_kinds(config))
    return 0, []


def _kinds(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    local = config["provider"]["type"] == "local"
    here = ray.nodes()[0]["Resources"] if local else {}  # one's own machines are taken to be like this one
    for name, kind in config["available_node_types"].items():
        if local or name != config["head_node_type"]:
            has = here if local else kind.get("resources", {})
            if "CPU" in has:
                yield name, has, int(kind.get("max_workers", config["max_workers"]))


def starting() -> int | None:
    """How many nodes are being started; None where Ray does not say."""
    with suppress(Exception):  # an autoscaler of the older kind tells it in no such way
        found = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=2)
        return len(found.pending_nodes) + sum(launch.count for launch in found.pending_launches)
    return None
