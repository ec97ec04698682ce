"""The report of one machine: versions, GPUs, usable paths, disk, ports.

This module is sent to the nodes as source and needs only Python, so that a node without raysim, or with another
version of it, can also report.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("raysim", "ray", "torch", "monai", "numpy")
SHARED_MEMORY = "/dev/shm"


def probe(reads: Sequence[str], writes: Sequence[str], ports: Sequence[int], session: str) -> dict[str, Any]:
    """Versions, GPUs, unusable paths with the reasons, free disk, and the addresses that listen at these ports.

    `session` is the directory of Ray's session on this machine, empty without Ray.
    """
    return {
        "versions": versions(),
        **gpus(hidden=bool(session)),
        "unreadable": {path: why for path in reads if (why := unreadable(path))},
        "unwritable": {path: why for path in writes if (why := unwritable(path))},
        "disk": tuple(shutil.disk_usage(session)) if os.path.isdir(session) else None,
        "shm": shutil.disk_usage(SHARED_MEMORY).total if os.path.isdir(SHARED_MEMORY) else None,
        "listens": listening_addresses(ports) if ports else [],
    }


def probe_without_torch(reads: Sequence[str], writes: Sequence[str], _: Sequence[int], __: str) -> dict[str, Any]:
    """The facts that a run needs before it starts: versions and paths. Does not import torch."""
    return {
        "versions": versions(),
        "unreadable": {path: why for path in reads if (why := unreadable(path))},
        "unwritable": {path: why for path in writes if (why := unwritable(path))},
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def differences(expected: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """For each node, the packages with versions that differ from the `expected` ones."""
    found = {
        name: {
            package: installed.get(package, "missing")
            for package in expected
            if installed.get(package, "missing") != expected[package]
        }
        for name, installed in nodes.items()
    }
    return {name: packages for name, packages in found.items() if packages}


def incompatibility(expected: Mapping[str, str], reads: Sequence[str]) -> str:
    """The reason why this node is unfit for a run: versions that are not `expected`, an unreadable path; else empty."""
    if other := differences(expected, {"": versions()}):
        found = ", ".join(f"{package} {number}, not {expected[package]}" for package, number in other[""].items())
        return f"has {found}: install the versions of the command's node on it, from constraints.txt"
    return next((f"cannot read {path}: {why}" for path in reads if (why := unreadable(path))), "")


def gpus(hidden: bool) -> dict[str, Any]:
    """The `cuda` that torch was built for, name and bytes of each of the `gpus` that it can use, or its `fault`."""
    if hidden:  # Ray hides all GPUs from a task that requests none
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        torch = import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(i) for i in range(count)]
        return {"cuda": torch.version.cuda, "gpus": [(gpu.name, gpu.total_memory) for gpu in found], "fault": ""}
    except Exception as error:  # noqa: BLE001 - any error that prevents the use of torch is the result
        return {"cuda": None, "gpus": [], "fault": f"{type(error).__name__}: {error}"}


def token_file(environ: Mapping[str, str], home: Path) -> Path:
    """The file of Ray's token, which is used if no variable contains the token."""
    given = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else home / ".ray" / "auth_token"


def unreadable(path: str) -> str:
    """The reason why this file, folder or URL cannot be read on this machine; empty if it can."""
    try:
        if "://" in path:
            filesystem, name = import_module("fsspec.core").url_to_fs(path)
            return "" if filesystem.exists(name) else "it does not exist"
        with os.scandir(path) if os.path.isdir(path) else open(path, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - each file system has different errors
        return f"{type(error).__name__}: {error}"


def unwritable(path: str) -> str:
    """The reason why this folder, which may not exist yet, cannot be written to; empty if it can."""
    there = existing(path)
    if not os.path.isdir(there):
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"this user may not write to {there}"


def existing(path: str) -> str:
    """`path`, or the nearest parent folder that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def listening_addresses(ports: Sequence[int]) -> list[str] | None:
    """The addresses on which this machine listens at these ports; None if they cannot be read."""
    psutil: Any = import_module("psutil")  # installed with Ray
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    return sorted({plain_address(c.laddr.ip) for c in connections if c.status == "LISTEN" and c.laddr.port in ports})


def plain_address(address: str) -> str:
    """The address, as IPv4 if it is an IPv4 address mapped into IPv6."""
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
