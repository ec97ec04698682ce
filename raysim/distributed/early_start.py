"""Starts a local Ray in a thread while the command imports torch and opens the data. Only that thread imports Ray."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raysim.distributed.local_ray import target_address

if TYPE_CHECKING:
    from concurrent.futures import Future

_started: Future[Any] | None = None  # the context of `ray.init`, until `connect` or `stop_unused` takes it


def start_early(address: str | None) -> None:
    """Start a local Ray in a thread, if the command uses one and has not imported torch yet. Returns at once.

    The environment variables of a local Ray must be set.
    """
    global _started
    if target_address(address) is not None or "torch" in sys.modules:
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1, "raysim-start-ray")
    _started = pool.submit(_start)
    pool.shutdown(wait=False)  # its thread ends when Ray is up


def _start() -> Any:
    from raysim.distributed.connection import start_local_ray

    return start_local_ray()


def is_pending() -> bool:
    """Whether a Ray was started early and not taken yet."""
    return _started is not None


def take() -> Any:
    """The context of the Ray that was started early, when it is up. Raises the error of its start.

    From then on the caller stops this Ray. After Ctrl-C in the wait, `stop_unused` still does.
    """
    global _started
    assert _started is not None
    error = _started.exception()
    context, _started = None if error else _started.result(), None
    if error is not None:
        raise error
    return context


def stop_unused() -> None:
    """Stop the Ray that was started early, if the command ends before it uses it."""
    if is_pending():
        with suppress(Exception):
            take()
            import ray

            ray.shutdown()
