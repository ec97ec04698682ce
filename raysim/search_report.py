"""The page of a search."""

from __future__ import annotations

from pathlib import Path

from raysim.ledger import Ledger


def write_search_report(out: Path, ledger: Ledger) -> Path:
    return out / "report.html"
