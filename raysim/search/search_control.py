"""What stands for a search on its cluster: `raysim status` reads it, `raysim stop` ends the search by it."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any

import ray
from ray.exceptions import RayError

from raysim.core.formatting import pluralize
from raysim.distributed.control_actor import start_control_actor
from raysim.distributed.prometheus import report_trials
from raysim.search.results import SearchResults

EVERY = 2.0  # seconds between two words to it


class SearchControl:
    """The search's own side of it."""

    def __init__(self, books: SearchResults, total: int) -> None:
        self.books, self.total = books, total
        self.name = f"{books.search.out.name}-{token_hex(3)}"
        self.stand = start_control_actor(self.name, "search", self._said(0))
        self._answer: Any = None
        self._due = 0.0

    def look(self, running: int) -> bool:
        """Say where the search is, now and then; whether someone has asked for its end."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + EVERY
        if self._answer is not None and not ray.wait([self._answer], timeout=0)[0]:
            return False
        asked = False
        with suppress(RayError):  # the search goes on without what stands for it
            asked = self._answer is not None and bool(ray.get(self._answer))
        report_trials(self.books.search.out.name, self._counts(running))
        self._answer = self.stand.tell.remote(self._said(running))
        return asked

    def _counts(self, running: int) -> dict[str, int]:
        states = Counter(record.status for record in self.books.records.values() if not record.unfinished)
        counts = {name: states[name] for name in ("done", "stopped", "failed")}
        return counts | {"running": running, "waiting": max(0, self.total - sum(counts.values()) - running)}

    def _said(self, running: int) -> dict[str, Any]:
        search, counts = self.books.search, self._counts(running)
        first, best = search.objectives[0], self.books.best()
        assert search.task is not None
        ended = counts["done"] + counts["stopped"] + counts["failed"]
        return {
            "run": self.name,
            "what": f"search over {pluralize(len(search.space.domains), 'key')} on {search.task.name}",
            "folder": str(search.out),
            "host": socket.gethostname(),
            "done": ended,
            "of": self.total,
            "at": ", ".join(f"{count} {name}" for name, count in counts.items() if count),
            "metric": first.column,
            "value": best[0].last[first.column] if best else None,
        }


@contextmanager
def search_control(books: SearchResults, total: int) -> Iterator[SearchControl]:
    """A leader, whose actor ends with the block."""
    leader = SearchControl(books, total)
    try:
        yield leader
    finally:
        ray.kill(leader.stand)
