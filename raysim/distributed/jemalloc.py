"""Memory freed by one step of a call is kept for the next, and given back to the system every few seconds."""

from __future__ import annotations

import ctypes
import time

EVERY = 0.5  # seconds
ALL = 4096  # jemalloc's number for all its arenas at once


class JemallocPurger:
    """Tells jemalloc, if this process runs on it, when to give memory back; does nothing on another allocator.

    By itself jemalloc gives a network's activations back while the step runs that will need them again, which costs a
    third of the time of 192 x 192 images; told never to, it lets a process grow with every call.
    """

    def __init__(self) -> None:
        self._control = getattr(ctypes.CDLL(None), "mallctl", None)
        self._settled = time.monotonic()
        if self._control is not None:
            self._write("arenas.dirty_decay_ms", -1)
            for arena in range(self._arenas()):
                self._write(f"arena.{arena}.dirty_decay_ms", -1)  # one that is not in use yet takes the value above

    def settle(self) -> None:
        """Give back what is free, unless that was done just now."""
        if self._control is not None and time.monotonic() - self._settled > EVERY:
            self._control(f"arena.{ALL}.purge".encode(), None, None, None, ctypes.c_size_t(0))
            self._settled = time.monotonic()

    def _write(self, name: str, value: int) -> int:
        given = ctypes.c_ssize_t(value)
        size = ctypes.c_size_t(ctypes.sizeof(given))
        assert self._control is not None
        return int(self._control(name.encode(), None, None, ctypes.byref(given), size))

    def _arenas(self) -> int:
        assert self._control is not None
        count, size = ctypes.c_uint(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint))
        self._control(b"arenas.narenas", ctypes.byref(count), ctypes.byref(size), None, ctypes.c_size_t(0))
        return count.value
