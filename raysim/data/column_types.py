"""Converts the text cells of a table's column to numbers or categories, and marks missing cells."""

from __future__ import annotations

import pandas as pd

MISSING_MARKERS = (  # in lower case
    *("", "?", "-", "--", "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "<na>", "nan", "-nan", "null", "none"),
    *(".", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),  # of statistics programs and of C
    *("#value!", "#div/0!", "#ref!", "#name?", "#num!", "#null!"),  # errors of a spreadsheet
)


def is_missing_marker(cells: pd.Series) -> pd.Series:
    """Whether each cell is a marker for a missing value, in upper or lower case; false for NA."""
    return cells.astype("string").str.strip().str.casefold().isin(MISSING_MARKERS)


def mask_missing(cells: pd.Series) -> pd.Series:
    """The cells with NA instead of markers for a missing value."""
    return cells.mask(is_missing_marker(cells))


def mask_missing_categories(cells: pd.Series) -> pd.Series:
    """Like `mask_missing`, but `None` remains, because it may be a category."""
    return cells.mask(is_missing_marker(cells) & (cells.astype("string").str.casefold() != "none").fillna(True))


def to_numbers(cells: pd.Series) -> pd.Series:
    """The cells as float64, NaN for a missing cell and for a cell without a finite number."""
    values = pd.to_numeric(mask_missing(cells), errors="coerce").astype(float)
    return values.mask(values.abs() == float("inf"))


def non_numeric_values(cells: pd.Series) -> list[str]:
    """The distinct values of cells that are neither missing nor a finite number, sorted."""
    values = mask_missing(cells)[to_numbers(cells).isna()].dropna()
    return sorted(map(str, values.unique()))


def to_categories(cells: pd.Series) -> pd.Series:
    """The cells as category names, NA for a missing cell; `1`, `1.0` and `1.00` are one category."""
    return mask_missing_categories(cells).astype("string").str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)


def sort_naturally(values: pd.Series) -> list[str]:
    """The distinct values, sorted as numbers if all are numbers, else as text."""
    names = pd.Series(values.dropna().astype("string").unique(), dtype="string")
    sizes = pd.to_numeric(names, errors="coerce")
    # The name breaks ties: otherwise 1 and 1.0 would keep the order of the rows.
    order = pd.DataFrame({"size": 0.0 if sizes.isna().any() else sizes.astype(float), "name": names})
    return [str(name) for name in order.sort_values(["size", "name"])["name"]]
