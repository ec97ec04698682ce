"""Labels that are not one class: several columns of 0 and 1, or a column with a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.core.targets import Target
from raysim.data.column_types import mask_missing
from raysim.data.file_inspection import MAX_LABEL_VALUES

Array = np.ndarray[Any, np.dtype[Any]]
Label = int | float | tuple[int, ...]  # a class index, a number, or 0 and 1 of each label
UNLABELLED = "unlabelled"
YES_NO = {"0": "0", "1": "1", "0.0": "0", "1.0": "1"}
SHOWN = 3  # wrong cells in a message


def several_labels(table: pd.DataFrame, columns: Sequence[str], path: str, *, needed: bool = True) -> pd.DataFrame:
    """The table with 0 and 1 of each of the `columns` as `label`, such as `010`; NA for a row without labels.

    `table` is as from `read_table` with `in_order`. Raises ConfigError, naming the table at `path`, for a missing
    column, if they are `needed`, for an empty cell, and for other values.
    """
    labels = pd.Series("", table.index, dtype="string")
    for name in columns:
        cells = _cells(table, name, path, needed)
        _check_values(cells, cells.isin(list(YES_NO)), f"{name}: expected 0 or 1", path)
        labels += cells.map(YES_NO, na_action="ignore").astype("string")
    return table.assign(label=labels)


def number_label(table: pd.DataFrame, column: str, path: str, *, needed: bool = True) -> pd.DataFrame:
    """The table with the finite numbers of `column` as `label`; arguments and errors as for `several_labels`."""
    cells = _cells(table, column, path, needed)
    numbers = pd.to_numeric(cells, errors="coerce").astype(float)
    _check_values(cells, numbers.abs() < float("inf"), f"{column}: expected a finite number", path)
    return table.assign(label=cells)


def decode_labels(table: pd.DataFrame, target: Target) -> pd.DataFrame:
    """The table with the labels of `several_labels` or `number_label` as tuples or numbers."""
    decode = float if target is Target.NUMBER else _digits
    labels = [pd.NA if pd.isna(text) else decode(text) for text in table["label"]]
    return table.assign(label=pd.Series(labels, table.index, dtype="object"))


def _digits(text: str) -> tuple[int, ...]:
    return tuple(map(int, text))


def label_counts(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """`labels: edema 12, effusion 3 of 40 labelled cases`; `table` as from `decode_labels`."""
    rows = label_rows(list(table["label"].dropna())).reshape(-1, len(columns))
    shown = [f"{name} {count}" for name, count in zip(columns, rows.sum(0, dtype=int).tolist(), strict=True)]
    more = f" and {len(shown) - MAX_LABEL_VALUES} more" if len(shown) > MAX_LABEL_VALUES else ""
    return f"labels: {', '.join(shown[:MAX_LABEL_VALUES])}{more} of {pluralize(len(rows), 'labelled case')}"


def number_ranges(table: pd.DataFrame, column: str) -> str:
    """`age: 18 to 93, mean 56.2 (40 labelled cases)`; `table` as from `decode_labels`."""
    numbers = table["label"].dropna().to_numpy(np.float64)
    shown = f"{numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.4g} " if len(numbers) else ""
    return f"{column}: {shown}({pluralize(len(numbers), 'labelled case')})"


def case_label(cell: Any) -> str | Label | None:
    """The label of a case from a cell of the column `label`: a mask's file, a `Label`, or None for NA."""
    if isinstance(cell, str | tuple):
        return cell
    if pd.isna(cell):
        return None
    return cell if isinstance(cell, float) else int(cell)


def label_rows(labels: Sequence[Label]) -> Array:
    """Labels as rows: (N, L) uint8 for tuples, (N, 1) float32 for numbers, (N, 1) uint8 for class indices."""
    number = any(isinstance(label, float) for label in labels)
    rows = np.array(labels, np.float32 if number else np.uint8)
    return rows if rows.ndim == 2 else rows[:, None]


def _cells(table: pd.DataFrame, column: str, path: str, needed: bool) -> pd.Series:
    """The text of a column, NA for unlabelled rows; with `needed` all other rows have a value."""
    if column not in table:
        names = [str(name) for name in table.columns if name not in ("site", "split", "image")]
        raise ConfigError(
            f"table {path}: it has no column {column!r}{did_you_mean(column, names)}; its other columns are "
            f"{join_names(names)}. Name one of them, or add the column"
        )
    cells = mask_missing(table[column].astype("string").str.strip())
    unlabelled = (table["split"] == UNLABELLED).fillna(False)
    empty = table.index[cells.isna() & ~unlabelled]
    if len(empty) and needed:
        raise ConfigError(
            f"table {path}: empty {column} cells in row{'s' * (len(empty) > 1)} {join_names(list(empty))}; every row "
            f"needs a value for {column} unless its split is 'unlabelled'"
        )
    return cells.mask(unlabelled)


def _check_values(cells: pd.Series, valid: pd.Series, expected: str, path: str) -> None:
    wrong = cells[cells.notna() & ~valid]
    if len(wrong):
        found = ", ".join(f"{cell!r} in row {row}" for row, cell in wrong.head(SHOWN).items())
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(f"table {path}: column {expected}, not {found}{more}; correct the cells, or remove the rows")
