"""The address of the Ray that a command uses, and the environment variables of a local Ray. Does not import Ray."""

from __future__ import annotations

import os


def target_address(address: str | None) -> str | None:
    """The address of the Ray to join: `address`, else RAY_ADDRESS; None for a local Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


def set_local_ray_variables(address: str | None) -> None:
    """Set the environment variables of a local Ray; call it before `import ray`.

    Does nothing if the command joins a cluster, by `address` or RAY_ADDRESS.
    """
    if target_address(address) is None:
        # Only this machine uses a local Ray. In spite of its name, this variable keeps every port on the loopback
        # address on Linux too.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Workers use jemalloc, which Ray ships for its processes: malloc takes a tenth of a small training step.
        os.environ.setdefault("RAY_LD_PRELOAD_ON_WORKERS", "1")
