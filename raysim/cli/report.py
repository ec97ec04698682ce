"""`raysim report`: write report.html of a run again, or a page with several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.reporting.html_report import write_report
from raysim.reporting.side_by_side import check_run, write_side_by_side
from raysim.storage.run_directory import reading_runs


def report(directories: Sequence[Path], out: Path | None) -> Path:
    """Write the page of the runs and return its path. Raises ConfigError for a directory without an ended run."""
    with reading_runs(directories):
        return _report(directories, out)


def _report(directories: Sequence[Path], out: Path | None) -> Path:
    for directory in directories:
        check_run(directory)
    if len(directories) == 1:
        if out is not None:
            raise ConfigError(f"--out {out}: the report of one run is written to its directory; remove --out")
        return write_report(directories[0])
    path = out or Path("side_by_side.html")
    write_side_by_side(directories, path)
    return path
