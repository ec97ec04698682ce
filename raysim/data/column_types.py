"""What the cells of a table's column are: numbers, names, or nothing."""

from __future__ import annotations

import pandas as pd

MARKS = ("?", "NA", "N/A", "nan", "NaN", "null", "-")  # what people write where there is nothing


def present(cells: pd.Series) -> pd.Series:
    """The cells with NA where there is nothing."""
    return cells.mask(cells.isin(MARKS))


def numbers(cells: pd.Series) -> pd.Series:
    """The cells as float64, NaN where there is nothing or no finite number."""
    found = pd.to_numeric(present(cells), errors="coerce").astype(float)
    return found.mask(found.abs() == float("inf"))


def no_numbers(cells: pd.Series) -> list[str]:
    """The cells that hold something other than a finite number, each once, in order."""
    odd = present(cells)[numbers(cells).isna()].dropna()
    return sorted(map(str, odd.unique()))


def categories(cells: pd.Series) -> pd.Series:
    """The cells as names, NA where there is nothing; whole numbers are called alike however they are written."""
    return present(cells).astype("string").str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)


def natural_order(values: pd.Series) -> list[str]:
    """The values, each once: by size where all are numbers, else by name."""
    each = pd.Series(values.dropna().astype("string").unique(), dtype="string")
    sizes = pd.to_numeric(each, errors="coerce")
    # By name too: two ways to write a number must not stand in the order of the rows.
    order = pd.DataFrame({"size": 0.0 if sizes.isna().any() else sizes.astype(float), "name": each})
    return [str(name) for name in order.sort_values(["size", "name"])["name"]]
