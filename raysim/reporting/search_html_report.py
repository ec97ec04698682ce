"""`report.html` of a search: what it came to, on one page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.atomic_io import write
from raysim.reporting.html_report import page_style, template
from raysim.reporting.search_console import duration
from raysim.reporting.search_plots import search_plots
from raysim.search.distributions import written
from raysim.search.objectives import finite
from raysim.search.results import Books
from raysim.search.trial_store import Entry

TEMPLATE = Path(__file__).with_suffix(".html.j2")
SHOWN = 100  # trials in the table


def write_search_report(out: Path, books: Books, total: int) -> Path:
    """Write the page of the search of `total` trials in `out`, from its books and rounds.parquet; its path."""
    search, entries = books.search, sorted(books.entries.values(), key=lambda entry: entry.number)
    best, first = books.best(), search.objectives[0]
    shown = sorted(entries, key=lambda entry: _order(entry, first))
    page = template(TEMPLATE).render(
        style=page_style(),
        name=out.name,
        search=search,
        states=Counter(entry.state for entry in entries) | Counter({"to come": max(0, total - len(entries))}),
        best=best,
        entries=shown[:SHOWN],
        count=len(entries),
        hidden=max(0, len(entries) - SHOWN),
        space={key: written(domain) for key, domain in search.space.domains.items()},
        saved=_saved(search.rounds, entries),
        plots=list(search_plots(search, entries, best, pd.read_parquet(out / "rounds.parquet"))),
        config=(out / "best.yaml").read_text() if (out / "best.yaml").exists() else "",
    )
    path = out / "report.html"
    write(path, page.encode("ascii", "xmlcharrefreplace").decode())
    return path


def _order(entry: Entry, first: Any) -> tuple[bool, bool, float]:
    """Done before stopped before failed, the best first."""
    value = entry.last.get(first.column)
    if not finite(value):
        return True, True, 0.0
    return False, entry.status != "done", float(-value if first.better == "higher" else value)


def _saved(rounds: int, entries: list[Entry]) -> str:
    """What early stopping spared, as a sentence; nothing if it has stopped none."""
    stopped = [entry for entry in entries if entry.status == "stopped"]
    played, seconds = sum(entry.rounds for entry in entries), sum(entry.seconds for entry in entries)
    if not stopped or not played:
        return ""
    spared = sum(rounds - entry.rounds for entry in stopped)
    usual = seconds / played * spared
    return (
        f"{len(stopped)} of {len(entries)} trials were stopped early. Trials played {played} rounds in "
        f"{duration(seconds)} of work; {spared} more, about {duration(usual)}, were spared: "
        f"{spared / (played + spared):.0%} of the whole."
    )
