"""The control of a search: `raysim status` shows it, `raysim stop` ends it, Prometheus counts its trials."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

from raysim.core.formatting import pluralize
from raysim.distributed.control_actor import RunControl, RunStatus
from raysim.distributed.prometheus import report_trials
from raysim.search.results import SearchResults


class SearchControl:
    """Publishes the status of a search of `total` trials, and reads whether a stop was requested."""

    def __init__(self, results: SearchResults, total: int) -> None:
        self.results, self.total = results, total
        self.control = RunControl(f"{results.spec.out.name}-{token_hex(3)}")

    def publish(self, running: int) -> bool:
        """Publish the status if it is due. Returns whether a stop was requested. `running` is a number of trials."""
        if not self.control.due():
            return False
        report_trials(self.results.spec.out.name, self._counts(running))
        return self.control.publish(self._status(running))

    def _counts(self, running: int) -> dict[str, int]:
        states = Counter(str(record.status) for record in self.results.records.values() if not record.unfinished)
        counts = {name: states[name] for name in ("done", "stopped", "failed")}
        return counts | {"running": running, "waiting": max(0, self.total - sum(counts.values()) - running)}

    def _status(self, running: int) -> RunStatus:
        search, counts = self.results.spec, self._counts(running)
        first, best = search.objectives[0], self.results.best()
        assert search.task is not None
        return RunStatus(
            name=self.control.name,
            description=f"search over {pluralize(len(search.space.domains), 'key')} on {search.task.name}",
            directory=str(search.out),
            host=socket.gethostname(),
            done=counts["done"] + counts["stopped"] + counts["failed"],
            total=self.total,
            state=", ".join(f"{count} {name}" for name, count in counts.items() if count),
            metric=first.column,
            value=best[0].last[first.column] if best else None,
        )


@contextmanager
def search_control(results: SearchResults, total: int) -> Iterator[SearchControl]:
    """The control of a search during the block."""
    control = SearchControl(results, total)
    control.publish(0)
    try:
        yield control
    finally:
        control.control.close()
