"""Which Ray a command uses, and the variables of a local one. This module imports neither Ray nor torch."""

from __future__ import annotations

import os


def target_address(address: str | None) -> str | None:
    """The address of the Ray to join: `address`, else RAY_ADDRESS; None for a local Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


def set_local_ray_variables(address: str | None) -> None:
    """Prepare the environment for a local Ray; to be called before Ray is imported.

    Does nothing if a cluster will be joined, by `address` or RAY_ADDRESS.
    """
    if target_address(address) is None:
        # A local Ray serves this machine only. In spite of its name, this variable keeps every port on the loopback
        # address on Linux too.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Workers use jemalloc, which Ray ships for its own processes: malloc is a tenth of a small training step.
        os.environ.setdefault("RAY_LD_PRELOAD_ON_WORKERS", "1")
