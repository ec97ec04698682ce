"""Versions, hardware and the command of a run (env.json), and users' modules on other nodes."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
import torch

from raysim import __version__

PACKAGES = ("ray", "torch", "monai", "numpy", "pandas", "pyarrow", "nibabel", "pillow", "scipy", "pydantic")


def pickle_by_value(*classes: type) -> None:
    """The user's own module travels with the run: other processes and machines may not be able to import it."""
    for cls in classes:
        if cls.__module__.partition(".")[0] not in ("raysim", "algorithms"):
            ray.cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and the command: what env.json holds. No environment variable is recorded."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    cuda = torch.cuda.is_available()
    return {
        "raysim": __version__,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "ray": ray.cluster_resources() if ray.is_initialized() else None,
    }
