"""Tables as CSV that a spreadsheet shows without executing a cell."""

from __future__ import annotations

import pandas as pd

from raysim.core.formatting import is_formula


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV without its index. A cell or a name that would be a formula gets an apostrophe in front."""
    return table.rename(columns=_quoted).map(_quoted).to_csv(index=False)


def _quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and is_formula(cell) else cell
