"""The console of a search: a live table of running and best trials, a line per ended trial, and the best at the end.

The console only prints; it makes no decisions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysim.core.formatting import format_objective, format_score, pluralize, quote_path
from raysim.core.numeric import is_finite_number
from raysim.reporting.console import RunConsole

if TYPE_CHECKING:
    from raysim.search.objectives import Objective
    from raysim.search.results import SearchResults
    from raysim.search.spec import SearchSpec
    from raysim.search.trial_resources import TrialPlacement
    from raysim.search.trial_store import TrialRecord

REFRESH_S = 0.5  # time between two updates of the live table
MAX_TRIALS_SHOWN = 8


class SearchConsole(RunConsole):
    """Prints a search to `console`: with a live table in a terminal, otherwise as plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.results: SearchResults | None = None
        self._live: Live | None = None
        self._started_at = self._refreshed_at = 0.0
        self._rounds = 0  # rounds, of all trials, that have ended since the start

    @contextmanager
    def live_search(self, results: SearchResults, placement: TrialPlacement) -> Iterator[None]:
        """During the block, a terminal shows the live table."""
        self.results, self._started_at = results, time.monotonic()
        spec = results.spec
        trials, rounds = pluralize(spec.trial_count, "trial"), pluralize(spec.rounds, "round")
        objectives = ", ".join(f"{each.column} ({each.better} is better)" for each in spec.objectives)
        self.say(f"{trials} of {rounds}, {placement.concurrent_trials} at once; objectives: {objectives}")
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            self._live = live if self.console.is_terminal else None
            yield
        self._live = None

    def on_round(self, trial: int, result: Mapping[str, Any]) -> None:
        """Count a round that has ended."""
        self._rounds += 1

    def on_trial_end(self, record: TrialRecord) -> None:
        """Print the line of a trial that has ended."""
        assert self.results is not None
        spec = self.results.spec
        metrics = "  ".join(f"{o.column} {_score(record, o)}" for o in spec.objectives)
        cause = f": {record.cause.splitlines()[0]}" if record.cause else ""
        line = f"trial {record.number:{len(str(spec.trial_count))}}/{spec.trial_count}  {record.status:<7}"
        line += f"  round {record.rounds}  {metrics}  {record.seconds:.1f} s  {format_values(record.values)}{cause}"
        style = "yellow" if record.failed else None
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def refresh(self, running: int) -> None:
        """Update the live table if an update is due. `running` is the number of running trials."""
        if self._live is not None and time.monotonic() - self._refreshed_at > REFRESH_S:
            self._refreshed_at = time.monotonic()
            self._live.update(self._live_table(running), refresh=True)

    def _live_table(self, running: int) -> Table:
        assert self.results is not None
        records, objectives = list(self.results.records.values()), self.results.spec.objectives
        ended = Counter(str(record.status) for record in records if not record.unfinished)
        waiting = self.results.spec.trial_count - running - ended.total()
        counts = [f"{ended[status]} {status}" for status in ("done", "stopped", "failed") if ended[status]]
        title = ", ".join([*counts, f"{running} running", f"{waiting} waiting"]) + self._time_left()
        table = Table("", "trial", "round", box=SIMPLE_HEAD, title=title, title_justify="left")
        for objective in objectives:
            table.add_column(_heading(objective), justify="right", overflow="fold")
        table.add_column("keys", overflow="fold")
        best = self.results.best()[:3]
        open_trials = [record for record in records if record.unfinished and record not in best]
        for record in [*best, *open_trials][:MAX_TRIALS_SHOWN]:
            mark = "best" if record in best else ""
            scores = [_score(record, each) for each in objectives]
            table.add_row(mark, str(record.number), str(record.rounds), *scores, Text(format_values(record.values)))
        return table

    def _time_left(self) -> str:
        """An estimate from the rounds so far. Each trial is expected to have the mean length of the ended trials."""
        assert self.results is not None
        if not self._rounds:
            return ""
        spec, records = self.results.spec, list(self.results.records.values())
        ended = [record.rounds for record in records if not record.unfinished]
        mean_rounds = sum(ended) / len(ended) if ended else spec.rounds
        rounds_left = sum(max(0.0, mean_rounds - record.rounds) for record in records if record.unfinished)
        rounds_left += mean_rounds * (spec.trial_count - len(records))
        seconds_per_round = (time.monotonic() - self._started_at) / self._rounds
        return f"; about {format_duration(rounds_left * seconds_per_round)} left"

    def print_results(self, results: SearchResults) -> None:
        """Print the table of the best trials, the number of trials by status, and the paths of the results."""
        objectives, out = results.spec.objectives, results.spec.out
        table = Table("trial", "status", "rounds", box=SIMPLE_HEAD, title="best trials", title_justify="left")
        for objective in objectives:
            table.add_column(_heading(objective), justify="right", overflow="fold")
        table.add_column("keys", overflow="fold")
        best = results.best()
        for record in best[:MAX_TRIALS_SHOWN]:
            scores = [_score(record, each) for each in objectives]
            keys = Text(format_values(record.values))
            table.add_row(str(record.number), record.status, str(record.rounds), *scores, keys)
        if best:
            self.console.print(table)
        if best and (text := describe_compared_round(best[0], results.spec)):
            self.say(text)
        if ties := results.ties():
            numbers = ", ".join(str(record.number) for record in ties)
            self.say(f"other trials with the best value: {numbers}; the best trial is the one with the lowest number")
        counts = Counter(record.reported_status for record in results.records.values())
        self.say(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no trial has started")
        self.say(f"results: {out}")
        if best:
            self.say(f"rerun the best trial: raysim run -c {quote_path(out / 'best.yaml')}")


def _score(record: TrialRecord, objective: Objective) -> str:
    return format_objective(record.last.get(objective.column), objective.column)


def _heading(objective: Objective) -> str:
    """The column of the objective in two lines, so that a table fits a terminal of 80 columns."""
    role, slash, rest = objective.row_column.partition("/")
    return f"{role}/\n{rest}" if slash else role


def test_columns(record: TrialRecord, objectives: Sequence[Objective]) -> list[str]:
    """The columns with test scores of the objectives in the compared round; only columns that have a value."""
    columns = [each.column.replace("/val/", "/test/") for each in objectives if each.column.count("/") > 2]
    return [column for column in columns if is_finite_number(record.last.get(column))]


def describe_compared_round(record: TrialRecord, spec: SearchSpec) -> str:
    """The round of the trial that was compared, and its test scores; empty if there are none."""
    columns = test_columns(record, spec.objectives)
    scores = ", ".join(f"{name.removeprefix('best/')} {format_score(record.last[name])}" for name in columns)
    number = record.last.get("best/round")
    is_best = spec.compared_round == "best" and number is not None
    place = f"best round, {number:g}" if is_best else "last round"
    if is_best and len(spec.variants_of(record.values)) > 1:
        place = "best rounds, one of each federation"
    return f"trial {record.number} in its {place}: {scores}" if scores else ""


def format_values(values: Mapping[str, Any]) -> str:
    """The values of a trial in one line; floats have four significant digits."""
    short = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in values.items())
    return " ".join(f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in short)


def format_duration(seconds: float) -> str:
    """The time in seconds, minutes or hours, depending on its length."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
