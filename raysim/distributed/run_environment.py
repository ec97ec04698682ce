"""The environment of a run: versions for env.json, and user modules for other nodes.

Imports Ray only where it is used, because the environment variables of a local Ray must be set before `import ray`.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from raysim import __version__
from raysim.core.registry import modules_from_paths

PACKAGES = ("ray", "torch", "monai", "numpy", "pandas", "pyarrow", "nibabel", "pillow", "scipy", "pydantic")


def pickle_by_value(*classes: type) -> None:
    """Send the modules of these classes with the run if they are the user's, because other nodes may not have them.

    Modules that have their path as name are sent too, because no other process can import them by name.
    """
    from ray import cloudpickle

    for cls in classes:
        if cls.__module__.partition(".")[0] not in ("raysim", "algorithms"):
            cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])
    for module in modules_from_paths():
        cloudpickle.register_pickle_by_value(module)


def describe_environment(cluster: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Versions, hardware and the command: the content of env.json, without environment variables.

    `cluster` contains the resources of the Ray cluster, if the run uses one.
    """
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
        "ray": cluster,
    }
