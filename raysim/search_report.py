"""The page of a search."""

from __future__ import annotations

from pathlib import Path

from raysim.books import Books


def write_search_report(out: Path, books: Books) -> Path:
    return out / "report.html"
