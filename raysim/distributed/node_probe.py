"""What a machine says of itself.

It travels to the nodes as source and needs nothing but Python, so that one without raysim, or with another, answers.
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
SHM = "/dev/shm"


def probe(reads: Sequence[str], writes: Sequence[str], ports: Sequence[int], session: str) -> dict[str, Any]:
    """Versions, GPUs, the paths that cannot be used and why, free disk, and where those ports are listened on.

    `session` is the folder of Ray's session on this machine, empty where there is no Ray.
    """
    return {
        "versions": versions(),
        **gpus(hidden=bool(session)),
        "unreadable": {path: why for path in reads if (why := unreadable(path))},
        "unwritable": {path: why for path in writes if (why := unwritable(path))},
        "disk": tuple(shutil.disk_usage(session)) if os.path.isdir(session) else None,
        "shm": shutil.disk_usage(SHM).total if os.path.isdir(SHM) else None,
        "listens": listening_addresses(ports) if ports else [],
    }


def probe_without_torch(reads: Sequence[str], writes: Sequence[str], _: Sequence[int], __: str) -> dict[str, Any]:
    """Of the same only what a run needs to know before it starts, without importing torch."""
    return {
        "versions": versions(),
        "unreadable": {path: why for path in reads if (why := unreadable(path))},
        "unwritable": {path: why for path in writes if (why := unwritable(path))},
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def differences(own: Mapping[str, str], others: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The versions of each node that has not the `own` ones."""
    told = {
        name: {package: of.get(package, "missing") for package in own if of.get(package, "missing") != own[package]}
        for name, of in others.items()
    }
    return {name: packages for name, packages in told.items() if packages}


def incompatibility(own: Mapping[str, str], reads: Sequence[str]) -> str:
    """What is wrong with this node: other versions than the `own`, or that it cannot read these; empty if nothing."""
    if other := differences(own, {"": versions()}):
        told = ", ".join(f"{package} {number}, not {own[package]}" for package, number in other[""].items())
        return f"has {told}: install there what the command's node has, from constraints.txt"
    return next((f"cannot read {path}: {why}" for path in reads if (why := unreadable(path))), "")


def gpus(hidden: bool) -> dict[str, Any]:
    """`cuda` that torch was built for, the name and the bytes of each of the `gpus` it can use, or its `fault`."""
    if hidden:  # Ray hides all GPUs from a task that asks for none
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        torch = import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(i) for i in range(count)]
        return {"cuda": torch.version.cuda, "gpus": [(gpu.name, gpu.total_memory) for gpu in found], "fault": ""}
    except Exception as error:  # noqa: BLE001 - whatever keeps torch from working here is what is asked for
        return {"cuda": None, "gpus": [], "fault": f"{type(error).__name__}: {error}"}


def token_file(environ: Mapping[str, str], home: Path) -> Path:
    """Where Ray's token lies, if there is one that no variable holds."""
    given = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else home / ".ray" / "auth_token"


def unreadable(path: str) -> str:
    """Why this file, folder or URL cannot be read here; empty if it can."""
    try:
        if "://" in path:
            store, name = import_module("fsspec.core").url_to_fs(path)
            return "" if store.exists(name) else "it is not there"
        with os.scandir(path) if os.path.isdir(path) else open(path, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
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
    psutil: Any = import_module("psutil")  # Ray brings it
    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    return sorted({plain_address(c.laddr.ip) for c in found if c.status == "LISTEN" and c.laddr.port in ports})


def plain_address(address: str) -> str:
    """The address, of IPv4 where it is one in the clothes of IPv6."""
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
