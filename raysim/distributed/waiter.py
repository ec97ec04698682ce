"""A wait with a deadline and with increasingly rare notices, for all waits for a cluster."""

from __future__ import annotations

import math
import time


class Waiter:
    """Measures one wait from its creation, or from the last `reset`.

    `timeout_s` ends the wait (never, if infinite). The first notice is due after `notify_after_s`, and each next one
    after `backoff` times the time of the one before.
    """

    def __init__(self, timeout_s: float = math.inf, notify_after_s: float = math.inf, backoff: float = 2.0) -> None:
        self.timeout_s, self.notify_after_s, self.backoff = timeout_s, notify_after_s, backoff
        self.reset()

    def reset(self) -> None:
        """Start the wait again, because the awaited event has happened."""
        self._start, self._next_notice_s = time.monotonic(), self.notify_after_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the wait."""
        return time.monotonic() - self._start

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.elapsed_s > self.timeout_s

    def notice_due(self) -> bool:
        """Whether a notice is due; True once for each notice."""
        if self.elapsed_s < self._next_notice_s:
            return False
        self._next_notice_s *= self.backoff
        return True
