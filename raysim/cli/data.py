"""`raysim data scan` and `raysim data describe`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize, quote_path
from raysim.data.run_command import run_command
from raysim.data.scan import write_scan
from raysim.data.summarize import summarize
from raysim.data.table import read_table


def scan(folder: str, out: str | None, fractions: str, seed: int, group: str | None, console: Console) -> None:
    """Write the table of `folder` and print a summary of it."""
    target = out or str(Path(folder) / "table.csv")
    try:
        parts = tuple(float(part) for part in fractions.split(","))
    except ValueError:
        raise ConfigError(
            f"--fractions {fractions}: expected three numbers that add up to 1, such as 0.7,0.1,0.2"
        ) from None
    table = write_scan(folder, target, parts, seed, group=group)
    counts = table.groupby("split").size()
    rows = ", ".join(f"{split} {count}" for split, count in counts.items())
    sites = pluralize(table["site"].nunique(), "site")
    console.print(f"{target}: {sites}, {pluralize(len(table), 'row')} ({rows})", highlight=False, markup=False)
    recognised = f"  layout: {table.attrs['layout']}; task: {table.attrs['task']}"
    console.print(recognised, highlight=False, markup=False)
    for note in table.attrs.get("notes", ()):
        console.print(f"  {note}", style="yellow", highlight=False, markup=False)
    lines = [f"to show it: raysim data describe {quote_path(target)}"]
    try:
        lines.append(f"to train on it: {run_command(target, table.attrs['task'])}")
    except ConfigError as error:
        lines.append(f"no command to train on it: {error}")
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def describe(table: str, root: str | None, console: Console) -> None:
    """Print the contents of the table by site, and its faults."""
    summarize(read_table(table, root, needs_label=False, needs_image=False, check_files=False)).print(console)
