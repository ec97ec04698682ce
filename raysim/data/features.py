"""The columns of a table as features: which they are, what stands in for missing cells, and on what scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.data.column_types import categories, natural_order, no_numbers, numbers, present

Array = np.ndarray[Any, np.dtype[Any]]
MOST = 256  # values of a category


@dataclass(frozen=True)
class Features:
    """How a row becomes numbers: columns of numbers, then a 0 or 1 for each category, then one for each mark.

    A category that is not listed, or none, is 0 in all that its column has; a mark is 1 where a cell is missing.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    marked: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of a row is."""
        flags = [f"{name}={value}" for name, values in self.categories.items() for value in values]
        return (*self.numeric, *flags, *(f"{name} missing" for name in self.marked))

    def numbers(self, table: pd.DataFrame) -> Array:
        """The columns of numbers, (N, numeric) float64, NaN where a cell is missing."""
        return _side_by_side([numbers(table[name]) for name in self.numeric], len(table))

    def flags(self, table: pd.DataFrame) -> Array:
        """The columns of 0 and 1, (N, categories and marks) float64."""
        named = {name: categories(table[name]) for name in self.categories}
        found = [(named[name] == value).fillna(False) for name, values in self.categories.items() for value in values]
        return _side_by_side([*found, *(present(table[name]).isna() for name in self.marked)], len(table))


def _side_by_side(columns: Sequence[pd.Series], rows: int) -> Array:
    return np.stack([column.to_numpy(np.float64) for column in columns], 1) if columns else np.zeros((rows, 0))


@dataclass(frozen=True)
class Scale:
    """Of each column of numbers, over the cells that are there: what fills a missing one, the mean, the deviation."""

    median: Array
    mean: Array
    deviation: Array

    @classmethod
    def of(cls, cells: Array, other: Scale | None = None) -> Scale:
        """Of cells (N, F) with NaN where there is none.

        A column without any is on the scale of `other`, and a constant one has its deviation: else what comes later
        in such a column would be out of all proportion. Without another these are 0, 0 and 1.
        """
        columns = cells.shape[1]
        other = other or cls(np.zeros(columns), np.zeros(columns), np.ones(columns))
        empty = np.isnan(cells).all(0)
        known = np.where(empty, 0.0, cells) if len(cells) else np.zeros((1, columns))
        constant = np.nanmax(known, 0) == np.nanmin(known, 0)  # rounding leaves their deviation a hair above 0
        return cls(
            np.where(empty, other.median, np.nanmedian(known, 0)),
            np.where(empty, other.mean, np.nanmean(known, 0)),
            np.where(constant, other.deviation, np.nanstd(known, 0)),
        )

    def __call__(self, cells: Array) -> Array:
        """The cells, missing ones filled in, less the mean, in deviations."""
        scaled: Array = (np.where(np.isnan(cells), self.median, cells) - self.mean) / self.deviation
        return scaled


@dataclass(frozen=True)
class Chosen:
    """Which columns a user wants: those `named`, or all of numbers but the `meant`; and those of `categorical`."""

    named: Sequence[str] | None
    categorical: Sequence[str]
    meant: Sequence[str]
    marks: bool

    def features(self, table: pd.DataFrame, trained: pd.Series, path: str) -> Features:
        """The features of a table. Its categories and marks are those of the rows that `trained` says.

        Raises ConfigError, naming the table at `path`, for a column that is not there, has another meaning, holds what
        is no number, or is empty in all those rows. Warns of columns that are left out because they hold no numbers,
        and of those that look like the numbers of rows.
        """
        given = self.named if self.named is not None else self._found(table, table[trained])
        numeric = [name for name in dict.fromkeys(given) if name not in self.categorical]
        for fault in self._faults(table, numeric, table[trained]):
            raise ConfigError(f"table {path}: {fault}")
        marked = [name for name in (*numeric, *self.categorical) if present(table[name][trained]).isna().any()]
        values = {name: tuple(natural_order(categories(table[name][trained]))) for name in self.categorical}
        return Features(tuple(numeric), values, tuple(marked) if self.marks else ())

    def _found(self, table: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
        """The columns of numbers that mean nothing else and have one in `rows`."""
        free = [str(name) for name in table.columns if name not in (*self.meant, *self.categorical)]
        odd = {name: no_numbers(table[name])[:2] for name in free}
        found = [name for name in free if not odd[name] and numbers(rows[name]).notna().any()]
        left = [f"{name} ({join_names(list(map(repr, odd[name])) or ['empty'])})" for name in free if name not in found]
        if left:
            cure = "task.data.categorical takes columns of names or codes"
            warnings.warn(
                f"columns that are left out, as they are not of numbers: {join_names(left)}; {cure}", stacklevel=6
            )
        for name in (name for name in found if _numbers_rows(numbers(table[name]))):
            cure = "if it numbers the cases, leave it out by naming all others in task.data.features"
            warnings.warn(f"column '{name}' has another whole number in each row; {cure}", stacklevel=6)
        return found

    def _faults(self, table: pd.DataFrame, numeric: Sequence[str], rows: pd.DataFrame) -> Iterator[str]:
        """What is wrong with these columns; the first alone may be told, as the others may follow from it."""
        every = [*numeric, *self.categorical]
        for name in every:
            yield from self._strange(name, table)
        for name in numeric:
            yield from _odd_cells(name, table[name])
        for name in every:
            yield from _useless(name, rows[name], name in self.categorical)
        if not every:
            yield f"it has no column of numbers beside {', '.join(self.meant)}, so there is nothing to learn from"

    def _strange(self, name: str, table: pd.DataFrame) -> Iterator[str]:
        if name in self.meant:
            yield f"column '{name}' has a meaning of its own and is no feature; take it out of task.data.features"
        if name not in table:
            columns = ", ".join(f"'{column}'" for column in table.columns)
            yield f"it has no column '{name}'{did_you_mean(name, table.columns)}; it has {columns}"


def _odd_cells(name: str, cells: pd.Series) -> Iterator[str]:
    if odd := no_numbers(cells):
        number = int(present(cells).isin(odd).sum())
        yield (
            f"column '{name}' has {pluralize(number, 'cell')} with no number: {join_names([repr(value) for value in odd])}; "
            "correct the table, or name the column in task.data.categorical"
        )


def _useless(name: str, cells: pd.Series, category: bool) -> Iterator[str]:
    if present(cells).isna().all():
        yield f"column '{name}' has nothing in any training row of an inside site; leave it out"
    if category and (number := categories(cells).nunique()) > MOST:
        yield f"column '{name}' has {number} values; a category has at most {MOST}"


def _numbers_rows(found: pd.Series) -> bool:
    return len(found) > 2 and bool(found.notna().all() and found.is_unique and (found % 1 == 0).all())
