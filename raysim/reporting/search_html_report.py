"""`report.html` of a search: the results on one self-contained page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from raysim.core.numeric import is_finite_number
from raysim.reporting.html_report import run_sections, template
from raysim.reporting.page import page_style, write_page
from raysim.reporting.search_console import describe_compared_round, format_duration
from raysim.reporting.search_plots import search_plots

if TYPE_CHECKING:
    from raysim.search.objectives import Objective
    from raysim.search.results import SearchResults
    from raysim.search.trial_store import TrialRecord

TEMPLATE = Path(__file__).with_suffix(".html.j2")
MAX_TRIALS_SHOWN = 100


def write_search_report(results: SearchResults, *, live: bool = False) -> Path:
    """Write report.html of the search from its records and rounds.parquet; returns its path.

    If the search is `live`, browsers reload the page every minute.
    """
    spec, out = results.spec, results.spec.out
    records = sorted(results.records.values(), key=lambda record: record.number)
    ranked = sorted(records, key=lambda record: _rank(record, spec.objectives[0]))
    counts = Counter(record.reported_status for record in records)
    page = template(TEMPLATE).render(
        style=page_style(),
        live=live,
        name=out.name,
        spec=spec,
        counts=counts | Counter({"not started": max(0, spec.trial_count - len(records))}),
        best=results.best(),
        best_keys=[key for key in spec.space.domains if any(key in record.values for record in results.best())],
        compared=[text for record in results.best() if (text := describe_compared_round(record, spec))],
        records=ranked[:MAX_TRIALS_SHOWN],
        trials=len(records),
        hidden=max(0, len(records) - MAX_TRIALS_SHOWN),
        keys={key: spec.space.text(key) for key in spec.space.domains},
        saving=_early_stopping_saving(spec.rounds, records),
        search_plots=list(search_plots(results, pd.read_parquet(out / "rounds.parquet"))),
        trial=_best_trial(results),
        config=(out / "best.yaml").read_text() if (out / "best.yaml").exists() else "",
    )
    path = out / "report.html"
    write_page(path, page)
    return path


def _best_trial(results: SearchResults) -> dict[str, Any] | None:
    """The sections of the run of the best trial, or of its first federation; None without a summary of this run."""
    record = next(iter(results.best()), None)
    if record is None:
        return None
    for name, directory in results.run_directories(record).items():
        with suppress(OSError, ValueError):
            return {"number": record.number, "federation": name, **run_sections(directory)}
    return None


def _rank(record: TrialRecord, objective: Objective) -> tuple[bool, bool, float]:
    """Sort key: done trials, then stopped trials, then trials without a value; the best first in each group."""
    value = record.last.get(objective.column)
    if not is_finite_number(value):
        return True, True, 0.0
    return False, not record.done, float(-value if objective.better == "higher" else value)


def _early_stopping_saving(rounds: int, records: Sequence[TrialRecord]) -> str:
    """A sentence on the rounds that early stopping saved; empty if no trial was stopped."""
    stopped = [record for record in records if record.stopped]
    computed, seconds = sum(record.rounds for record in records), sum(record.seconds for record in records)
    if not stopped or not computed:
        return ""
    saved = sum(rounds - record.rounds for record in stopped)
    return (
        f"{len(stopped)} of {len(records)} trials were stopped early. The trials computed {computed} rounds in "
        f"{format_duration(seconds)} of work. Early stopping saved {saved} rounds, about "
        f"{format_duration(seconds / computed * saved)}: {saved / (computed + saved):.0%} of all rounds."
    )
