"""The checks of nodes, for `raysim doctor` and before a run: a line with a verdict for each finding."""

from __future__ import annotations

import ipaddress
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from raysim.core.formatting import format_bytes, join_names, pluralize
from raysim.distributed.node_probe import differences, existing, token_file, unwritable

FULL = 0.95  # used share of a disk above which Ray spills no objects to it


class Verdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """One line: the subject, what was found, and the cure."""

    name: str
    verdict: Verdict
    found: str
    cure: str = ""


@dataclass(frozen=True)
class NodeReport:
    """A node as Ray lists it, with its report (`node_probe.probe`), or with the `error` that prevented the report."""

    name: str
    cpus: float
    gpus: float
    memory: float  # bytes, without the object store
    store: float  # bytes
    facts: Mapping[str, Any] | None
    error: str = ""

    @property
    def usable(self) -> list[tuple[str, int]]:
        """Name and bytes of the GPUs that both Ray and torch can use."""
        return list(self.facts["gpus"])[: int(self.gpus)] if self.facts else []


def probed_facts(nodes: Sequence[NodeReport]) -> dict[str, Mapping[str, Any]]:
    """The facts of the nodes that answered, by name."""
    return {node.name: node.facts for node in nodes if node.facts is not None}


def of_nodes(nodes: Sequence[NodeReport]) -> Iterator[Check]:
    """A line for each node, with its resources."""
    for node in nodes:
        has = f"{node.name}: {node.cpus:g} CPU, {node.gpus:g} GPU, {format_bytes(node.memory)} memory"
        has += f", object store {format_bytes(node.store)}" if node.store else ""
        if node.facts is None:
            cure = "look at `ray status` and at that node's logs, or remove it from the cluster"
            yield Check("node", Verdict.WRONG, f"{has}; {node.error}", cure)
        else:
            yield Check("node", Verdict.OK, has)


def of_gpus(nodes: Sequence[NodeReport]) -> Iterator[Check]:
    """A line for each node with a GPU: the GPUs that torch can use, and those of Ray. Other nodes are counted."""
    bare = 0
    for node in nodes:
        if node.facts is None:
            continue
        found = [f"{name} {format_bytes(total)}" for name, total in node.facts["gpus"]]
        has = f"{node.name}: " + (
            f"{join_names(found)}, CUDA {node.facts['cuda']}" if found else "torch can use no GPU"
        )
        if node.facts["fault"]:
            yield Check("torch", Verdict.WRONG, f"{node.name}: {node.facts['fault']}", "reinstall torch on that node")
        elif node.gpus > len(found):
            cure = "start that node with its real number of GPUs, or install a torch build with CUDA on it"
            yield Check("GPU", Verdict.WRONG, f"{has}; Ray assigns {node.gpus:g}: actors would use the CPU", cure)
        elif node.gpus < len(found):
            yield Check(
                "GPU", Verdict.NOTE, f"{has}; Ray assigns {node.gpus:g}", "start the node with --num-gpus=N to use more"
            )
        elif found:
            yield Check("GPU", Verdict.OK, has)
        bare += not (found or node.gpus or node.facts["fault"])
    if bare:
        yield Check("GPU", Verdict.OK, f"none on {pluralize(bare, 'node')}")


def of_versions(facts: Mapping[str, Mapping[str, Any]], own: Mapping[str, str]) -> Iterator[Check]:
    """Whether every node has the versions of the command."""
    other = differences(own, {name: node["versions"] for name, node in facts.items()})
    mine = ", ".join(f"{package} {number}" for package, number in own.items())
    if not other:
        yield Check("versions", Verdict.OK, f"{mine}; the same on {_nodes(facts)}" if facts else mine)
        return
    yield Check("versions", Verdict.OK, f"{mine} on this machine")
    for name, packages in other.items():
        found = ", ".join(f"{package} {number} (here {own[package]})" for package, number in packages.items())
        cure = "install the versions of this machine on that node, from constraints.txt"
        yield Check("versions", Verdict.WRONG, f"{name}: {found}", cure)


def of_listening(facts: Mapping[str, Mapping[str, Any]], local: bool) -> Iterator[Check]:
    """The addresses on which Ray listens. `local` is whether Ray was started for this command."""
    found = [address for node in facts.values() for address in node["listens"] or ()]
    if not found:
        yield Check(
            "ports",
            Verdict.NOTE,
            "the addresses on which Ray listens cannot be read",
            "ask the administrator, or run: ss -tln",
        )
        return
    open_addresses = sorted({address for address in found if not ipaddress.ip_address(address).is_loopback})
    listens = f"Ray listens on {join_names(sorted(set(found)))}"
    if not open_addresses:
        yield Check("ports", Verdict.OK, f"{listens}, which only this machine can reach")
    elif local:
        cure = "unset RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER; a local Ray needs no other machine"
        yield Check("ports", Verdict.WRONG, f"{listens}: open to the network", cure)
    else:
        yield Check(
            "ports",
            Verdict.NOTE,
            f"{listens}: open to the network",
            "allow only the cluster's nodes to reach its ports",
        )


def of_token(environ: Mapping[str, str], home: Path, open_to_all: bool) -> Check:
    """Whether Ray requires a token, and its source. The token itself is not read.

    `open_to_all` is whether Ray has accepted a client without a token.
    """
    if open_to_all:
        cure = "set RAY_AUTH_MODE=token, here and on the nodes; `ray get-auth-token --generate` creates a token"
        return Check("token", Verdict.NOTE, "off: every user who can reach Ray can run code", cure)
    if "RAY_AUTH_TOKEN" in environ:
        return Check("token", Verdict.OK, "on, from RAY_AUTH_TOKEN")
    given = environ.get("RAY_AUTH_TOKEN_PATH")
    path = token_file(environ, home)
    source = f"on, from {path}" + (" (RAY_AUTH_TOKEN_PATH)" if given else "")
    if not path.exists():
        return Check(
            "token", Verdict.WRONG, f"required, but {path} does not exist", "ray get-auth-token --generate, or copy it"
        )
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Check("token", Verdict.NOTE, f"{source}, which other users can read", f"chmod 600 {path}")
    return Check("token", Verdict.OK, source)


def of_disks(nodes: Sequence[NodeReport]) -> Iterator[Check]:
    """Free disk for the objects that Ray spills, and shared memory for its object store."""
    known = [node for node in nodes if node.facts is not None and node.facts["disk"]]
    disks = {node.name: node.facts["disk"] for node in known if node.facts is not None}
    full = {name: free for name, (total, used, free) in disks.items() if used > FULL * total}
    for name, free in full.items():
        found = f"{name}: {format_bytes(free)} free, over {FULL:.0%} full: Ray spills no objects to it"
        yield Check("Ray's disk", Verdict.WRONG, found, "free some space on it")
    if disks and not full:
        least = min(free for _, _, free in disks.values())
        yield Check(
            "Ray's disk",
            Verdict.OK,
            f"at least {format_bytes(least)} free for objects that Ray spills, on {_nodes(disks)}",
        )
    shared = {node.name: (node.facts["shm"], node.store) for node in known if node.facts and node.facts["shm"]}
    small = {name: (has, needs) for name, (has, needs) in shared.items() if has < needs}
    for name, (has, needs) in small.items():
        sizes = f"{format_bytes(has)} for an object store of {format_bytes(needs)}"
        found = f"{name}: {sizes}; Ray uses the disk, which is slow"
        cure = f"docker run --shm-size={math.ceil(needs * 1.1 / 1e9)}g, or a smaller object store"
        yield Check("/dev/shm", Verdict.NOTE, found, cure)
    if shared and not small:
        yield Check("/dev/shm", Verdict.OK, f"enough for the object store, on {_nodes(shared)}")


def _nodes(named: Sequence[str] | Mapping[str, Any]) -> str:
    return pluralize(len(named), "node")


def of_folder(folder: Path) -> Check:
    """Whether a run can create its directory: `folder`, or a directory in it."""
    above = existing(str(folder))
    if why := unwritable(str(folder)):
        return Check("run folder", Verdict.WRONG, f"{folder}: {why}", "choose another folder with --out")
    return Check(
        "run folder", Verdict.OK, f"{folder} can be written to; {format_bytes(shutil.disk_usage(above).free)} free"
    )


def of_paths(facts: Mapping[str, Mapping[str, Any]], reads: Sequence[str], writes: Sequence[str]) -> Iterator[Check]:
    """Whether every node can read the data and write to the cache."""
    kinds = (
        ("data", "unreadable", "read", reads, "mount it on that node at the same path, or use a URL"),
        ("cache", "unwritable", "written to", writes, "choose another folder with task.data.cache=DIR or RAYSIM_CACHE"),
    )
    for name, kind, verb, paths, cure in kinds:
        faults = [(node, path, why) for node, reported in facts.items() for path, why in reported[kind].items()]
        for node, path, why in faults:
            yield Check(name, Verdict.WRONG, f"{node}: {path}: {why}", cure)
        if paths and not faults:
            yield Check(name, Verdict.OK, f"{_describe_paths(paths)} can be {verb} on {_nodes(facts)}")


def _describe_paths(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return paths[0]
    if any("://" in path for path in paths):
        return join_names(paths)
    return f"{len(paths)} folders under {os.path.commonpath(paths)}"
