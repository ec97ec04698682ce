"""`raysim report`: write report.html of a run or a search again, or a page with several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.reporting.html_report import write_report
from raysim.reporting.side_by_side import check_run, write_side_by_side
from raysim.storage.run_directory import SEARCH_FILE


def report(directories: Sequence[Path], out: Path | None) -> None:
    """Write the page and print its path. Raises ConfigError for a directory without an ended run or a search."""
    if len(directories) == 1:
        if out is not None:
            raise ConfigError(f"--out {out}: this report is written to the directory of the run; remove --out")
        _report_one(directories[0])
        return
    for directory in directories:
        check_run(directory)
    path = out or Path("side_by_side.html")
    write_side_by_side(directories, path)
    print(f"report: {path}")


def _report_one(directory: Path) -> None:
    if not (directory / SEARCH_FILE).is_file():
        check_run(directory)
        print(f"report: {write_report(directory)}")
        return
    from raysim.reporting.search_console import SearchConsole
    from raysim.reporting.terminal import Terminal
    from raysim.search.api import rebuild_report  # imports Ray

    rebuild_report(directory.absolute(), SearchConsole(Terminal()))
