"""The report of a running search, which browsers reload every minute."""

from __future__ import annotations

import time
from contextlib import suppress

from raysim.reporting.search_html_report import write_search_report
from raysim.search.results import SearchResults

INTERVAL_S = 60.0
MAX_SHARE = 0.02  # largest share of a search's time that may be spent on writing the report


class LiveReport:
    """Writes the tables and report.html of a search when they are due."""

    def __init__(self, results: SearchResults) -> None:
        self.results, self._due_at = results, time.monotonic() + INTERVAL_S

    def update(self) -> None:
        """Write the report if it is due. A report that cannot be written does not end the search."""
        start = time.monotonic()
        if start < self._due_at:
            return
        with suppress(Exception):
            self.results.write_tables()
            write_search_report(self.results, live=True)
        end = time.monotonic()
        self._due_at = end + max(INTERVAL_S, (end - start) / MAX_SHARE)
