"""Starts a local Ray in a thread while the command imports torch and opens the data. Only that thread imports Ray."""

from __future__ import annotations

import os
import sys
from threading import Event, Thread, get_native_id
from typing import Any

from raysim.distributed.local_ray import target_address

NICENESS = 10  # of the command's main thread; Ray gives its workers 15


class _EarlyStart(Thread):
    """Starts Ray. Linux ends Ray's processes together with the thread that started them, so it waits for `stopped`."""

    def __init__(self) -> None:
        super().__init__(name="raysim-ray", daemon=True)
        self.context: Any = None
        self.error: BaseException | None = None
        self.done, self.stopped = Event(), Event()

    def run(self) -> None:
        try:
            from raysim.distributed.connection import start_local_ray

            self.context = start_local_ray()
        except BaseException as error:  # noqa: BLE001 - `result` raises it in the main thread
            self.error = error
        self.done.set()
        self.stopped.wait()


_started: _EarlyStart | None = None  # a process has at most one Ray


def start_early(address: str | None) -> None:
    """Start a local Ray in a thread, if the command uses one and has not imported torch yet. Returns at once.

    The environment variables of a local Ray must be set. Only on Linux, see `exit_if_unused`.
    """
    global _started
    if target_address(address) is None and "torch" not in sys.modules and sys.platform == "linux":
        _started = _EarlyStart()
        _started.start()
        # Ray's processes get the CPU first: their start takes longer than the imports of this thread.
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)


def is_started() -> bool:
    """Whether a local Ray was started early, and has neither failed nor been stopped."""
    return _started is not None


def result() -> Any:
    """The context of the Ray that was started early, when it is up. Raises the error of its start."""
    assert _started is not None
    _started.done.wait()
    if _started.error is None:
        return _started.context
    error = _started.error
    _forget()
    raise error


def stop() -> None:
    """Stop the Ray that was started early and is up."""
    import ray

    ray.shutdown()
    _forget()


def exit_if_unused(code: int) -> None:
    """End this process at once if a local Ray was started early and not used, for example because of a wrong key.

    Stopping Ray would take seconds, because it must be up first. Linux ends its processes together with this one.
    """
    if _started is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _forget() -> None:
    global _started
    if _started is not None:
        _started.stopped.set()
        _started.join()
        _started = None
