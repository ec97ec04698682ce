"""What a person sees of a search: trials by status, the best so far, the time left; a line for each that has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysim.core.formatting import pluralize
from raysim.reporting.console import RunConsole, format_score
from raysim.search.results import SearchResults
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import TrialRecord

EVERY = 0.5  # seconds between two looks
SHOWN = 8  # trials in the table


class SearchConsole(RunConsole):
    """Prints to `console`: with a live table if it is a terminal, else in plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.books: SearchResults | None = None
        self.running, self.total, self.concurrent_trials = 0, 0, 1
        self._live: Live | None = None
        self._began = self._looked = 0.0
        self._rounds = 0  # that were played since then

    @contextmanager
    def following(self, search: SearchSpec, books: SearchResults, total: int, at_once: int) -> Iterator[None]:
        """While in the block, the table is shown."""
        self.books, self.total, self.concurrent_trials = books, total, at_once
        self._began = time.monotonic()
        self.say(
            f"{pluralize(total, 'trial')} of {pluralize(search.rounds, 'round')}, {at_once} at once, by {self._aims()}"
        )
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            self._live = live if self.console.is_terminal else None
            yield
        self._live = None

    def _aims(self) -> str:
        assert self.books is not None
        return ", ".join(f"{each.column} ({each.better} is better)" for each in self.books.search.objectives)

    def round(self, trial: int, result: Mapping[str, Any]) -> None:
        """A round of a trial has ended."""
        self._rounds += 1

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        found = "  ".join(self._found(record))
        why = f": {record.cause.splitlines()[0]}" if record.cause else ""
        line = f"trial {record.number:{len(str(self.total))}}/{self.total}  {record.status:<7}"
        line += f"  round {record.rounds}  {found}  {record.seconds:.1f} s  {format_keys(record)}{why}"
        style = "yellow" if record.status == "failed" else None
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def _found(self, record: TrialRecord) -> list[str]:
        assert self.books is not None
        return [f"{o.column} {format_score(record.last.get(o.column)) or '-'}" for o in self.books.search.objectives]

    def look(self, running: int) -> None:
        """Draw the table anew, if it is time."""
        self.running = running
        if self._live is not None and time.monotonic() - self._looked > EVERY:
            self._looked = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        assert self.books is not None
        records = list(self.books.records.values())
        states = Counter(record.status for record in records)
        said = [f"{states[name]} {name}" for name in ("done", "stopped", "failed") if states[name]]
        waiting = self.total - self.running - sum(not record.unfinished for record in records)
        title = ", ".join([*said, f"{self.running} running", f"{waiting} to come"]) + self._left()
        table = Table("", "trial", "round", box=SIMPLE_HEAD, title=title, title_justify="left")
        for objective in self.books.search.objectives:
            table.add_column(objective.column, justify="right")
        table.add_column("keys", overflow="fold")
        best = self.books.best()[:3]
        for record in [*best, *(e for e in records if e.unfinished and e not in best)][:SHOWN]:
            mark = "best" if record in best else ""
            values = [format_score(record.last.get(each.column)) for each in self.books.search.objectives]
            table.add_row(mark, str(record.number), str(record.rounds), *values, Text(format_keys(record)))
        return table

    def _left(self) -> str:
        assert self.books is not None
        spent, declared = time.monotonic() - self._began, self.books.search.rounds
        ended = [record.rounds for record in self.books.records.values() if not record.unfinished]
        usual = sum(ended) / len(ended) if ended else declared
        open_rounds = sum(max(0.0, usual - e.rounds) for e in self.books.records.values() if e.unfinished)
        left = open_rounds + usual * (self.total - len(self.books.records))
        return f"; about {format_duration(left * spent / self._rounds)} left" if self._rounds else ""

    def results(self, books: SearchResults, folder: Path) -> None:
        """The best trials, and where things are."""
        self.books = books
        table = Table("trial", "status", "rounds", box=SIMPLE_HEAD, title="the best", title_justify="left")
        for objective in books.search.objectives:
            table.add_column(objective.column, justify="right")
        table.add_column("keys", overflow="fold")
        best = books.best()
        for record in best[:SHOWN]:
            values = [format_score(record.last.get(each.column)) for each in books.search.objectives]
            table.add_row(str(record.number), record.status, str(record.rounds), *values, Text(format_keys(record)))
        if best:
            self.console.print(table)
        states = Counter(record.state for record in books.records.values())
        self.say(", ".join(f"{count} {status}" for status, count in sorted(states.items())) or "no trial has begun")
        self.say(f"everything is in {folder}")
        if best:
            self.say(f"the best again: raysim run -c {folder / 'best.yaml'}")


def format_keys(record: TrialRecord) -> str:
    """The values of a trial, short."""
    shown = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in record.values.items())
    return " ".join(f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in shown)


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
