"""What one machine reports about itself: versions, GPUs, usable paths, disk, ports.

It is sent to the nodes as source and needs nothing but Python, so that a node without raysim, or with another version
of it, answers.
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
    """Versions, GPUs, the paths that cannot be used and why, free disk, and the addresses that listen at these ports.

    `session` is the directory of Ray's session on this machine, empty where there is no Ray.
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
    """Only what a run must know before it starts: versions and paths, without the import of torch."""
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
    """By node: its packages whose versions differ from the `expected` ones."""
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
    """Why this node cannot serve a run: other versions than `expected`, or an unreadable path; empty if it can."""
    if other := differences(expected, {"": versions()}):
        found = ", ".join(f"{package} {number}, not {expected[package]}" for package, number in other[""].items())
        return f"has {found}: install there what the command's node has, from constraints.txt"
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
    except Exception as error:  # noqa: BLE001 - whatever keeps torch from working here is the result
        return {"cuda": None, "gpus": [], "fault": f"{type(error).__name__}: {error}"}


def token_file(environ: Mapping[str, str], home: Path) -> Path:
    """The file of Ray's token, which is used if no variable contains the token."""
    given = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else home / ".ray" / "auth_token"


def unreadable(path: str) -> str:
    """Why this file, folder or URL cannot be read here; empty if it can."""
    try:
        if "://" in path:
            filesystem, name = import_module("fsspec.core").url_to_fs(path)
            return "" if filesystem.exists(name) else "it is not there"
        with os.scandir(path) if os.path.isdir(path) else open(path, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - each file system has its own errors
        return f"{type(error).__name__}: {error}"


def unwritable(path: str) -> str:
    """Why nothing can be written into this folder, which is made where it is missing; empty if it can."""
    there = existing(path)
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not yours to write in"


def existing(path: str) -> str:
    """`path`, or the nearest above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def listening_addresses(ports: Sequence[int]) -> list[str] | None:
    """The addresses on which this machine listens at these ports; None where that cannot be seen."""
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
