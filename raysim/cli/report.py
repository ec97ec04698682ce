"""`raysim report`: write report.html of a run or a search again, or a page with several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.reporting.html_report import write_report
from raysim.reporting.side_by_side import check_run, write_side_by_side
from raysim.storage.run_directory import SEARCH_FILE, reading_runs


def report(directories: Sequence[Path], out: Path | None) -> None:
    """Write the page and print its path. Raises ConfigError for a directory without an ended run or a search."""
    if len(directories) > 1:
        with reading_runs(directories):
            path = _side_by_side(directories, out or Path("side_by_side.html"))
    elif out is not None:
        raise ConfigError(
            f"--out {out}: the report of a single run or search is always report.html in its directory; remove "
            "--out, or give several runs"
        )
    elif (directories[0] / SEARCH_FILE).is_file():
        _rebuild_search_report(directories[0])
        return
    else:
        with reading_runs(directories):
            check_run(directories[0])
            path = write_report(directories[0])
    print(f"report: {path}")


def _side_by_side(directories: Sequence[Path], path: Path) -> Path:
    for directory in directories:
        check_run(directory)
    write_side_by_side(directories, path)
    return path


def _rebuild_search_report(directory: Path) -> None:
    from raysim.reporting.search_console import SearchConsole
    from raysim.reporting.terminal import Terminal
    from raysim.search.api import rebuild_report  # imports Ray

    rebuild_report(directory.absolute(), SearchConsole(Terminal()))
