"""`raysim runs`: list the runs in a folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from raysim.core.errors import ConfigError
from raysim.reporting.run_list import list_runs, run_table
from raysim.reporting.text_tables import print_table
from raysim.storage.run_directory import runs_directory


def print_runs(folder: Path | None, console: Console) -> None:
    """Print the runs in `folder`, by default the folder of new runs. Raises ConfigError if there are none."""
    rows = list_runs(folder or runs_directory())
    if not rows:
        raise ConfigError(f"{folder or runs_directory()} has no runs; give a folder with runs")
    table = run_table(rows)
    print_table(table, console, left=[str(name) for name in table.columns])
