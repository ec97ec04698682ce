"""Prints tables of text that fit the console."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(table: pd.DataFrame, console: Console, left: Collection[str] = ()) -> None:
    """Print `table` in parts that fit the console, each with the first column; `left` are left-aligned columns."""
    for part in _fitting(table, console.width):
        console.print(_rich_table(part, left))


def _fitting(table: pd.DataFrame, width: int) -> Iterator[pd.DataFrame]:
    """The table in parts that fit `width`, each with the first column."""
    widths = [3 + max(len(str(name)), *(len(cell) for cell in table[name])) for name in table]
    first, start = table.columns[0], 1
    while start < len(widths):
        end = start + 1
        while end < len(widths) and widths[0] + sum(widths[start : end + 1]) <= width:
            end += 1
        yield table[[first, *table.columns[start:end]]]
        start = end


def _rich_table(rows: pd.DataFrame, left: Collection[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, name in enumerate(rows):
        table.add_column(
            str(name), justify="right" if number and name not in left else "left", overflow="fold", no_wrap=number > 0
        )
    for row in rows.itertuples(index=False):
        table.add_row(*map(Text, row))  # as Text, because a list would be parsed as markup
    return table
