"""`report.html` of a search: what it came to, on one page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.atomic_io import write_text
from raysim.reporting.html_report import page_style, template
from raysim.reporting.search_console import format_duration
from raysim.reporting.search_plots import search_plots
from raysim.search.distributions import to_text
from raysim.search.objectives import is_finite_number
from raysim.search.results import SearchResults
from raysim.search.trial_store import TrialRecord

TEMPLATE = Path(__file__).with_suffix(".html.j2")
SHOWN = 100  # trials in the table


def write_search_report(out: Path, books: SearchResults, total: int) -> Path:
    """Write the page of the search of `total` trials in `out`, from its books and rounds.parquet; its path."""
    search, records = books.search, sorted(books.records.values(), key=lambda record: record.number)
    best, first = books.best(), search.objectives[0]
    shown = sorted(records, key=lambda record: _order(record, first))
    page = template(TEMPLATE).render(
        style=page_style(),
        name=out.name,
        search=search,
        states=Counter(record.state for record in records) | Counter({"to come": max(0, total - len(records))}),
        best=best,
        records=shown[:SHOWN],
        count=len(records),
        hidden=max(0, len(records) - SHOWN),
        space={key: to_text(domain) for key, domain in search.space.domains.items()},
        saved=_saved(search.rounds, records),
        plots=list(search_plots(search, records, best, pd.read_parquet(out / "rounds.parquet"))),
        config=(out / "best.yaml").read_text() if (out / "best.yaml").exists() else "",
    )
    path = out / "report.html"
    write_text(path, page.encode("ascii", "xmlcharrefreplace").decode())
    return path


def _order(record: TrialRecord, first: Any) -> tuple[bool, bool, float]:
    """Done before stopped before failed, the best first."""
    value = record.last.get(first.column)
    if not is_finite_number(value):
        return True, True, 0.0
    return False, record.status != "done", float(-value if first.better == "higher" else value)


def _saved(rounds: int, records: list[TrialRecord]) -> str:
    """What early stopping spared, as a sentence; nothing if it has stopped none."""
    stopped = [record for record in records if record.status == "stopped"]
    played, seconds = sum(record.rounds for record in records), sum(record.seconds for record in records)
    if not stopped or not played:
        return ""
    spared = sum(rounds - record.rounds for record in stopped)
    usual = seconds / played * spared
    return (
        f"{len(stopped)} of {len(records)} trials were stopped early. Trials played {played} rounds in "
        f"{format_duration(seconds)} of work; {spared} more, about {format_duration(usual)}, were spared: "
        f"{spared / (played + spared):.0%} of the whole."
    )
