"""The features of tabular rows: selection of columns, imputation, standardisation and one-hot encoding."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.data.column_types import (
    mask_missing,
    mask_missing_categories,
    non_numeric_values,
    sort_naturally,
    to_categories,
    to_numbers,
)
from raysim.data.near_equal import near_equal_names
from raysim.data.patient_columns import patient_columns
from raysim.data.table import COLUMNS

Array = np.ndarray[Any, np.dtype[Any]]
MAX_CATEGORIES = 256  # of one column
COMMA_NUMBER = re.compile(r"[+-]?[\d.]*(,\d+)+(\.\d+)?")  # 1,5 and 1.234,5 and 1,234.5
MIN_ROWS_OF_COPY = 20  # in fewer rows, a feature may equal the label by chance
UNNAMED = re.compile(r"Unnamed: \d+")  # pandas names a column without a name like this, such as a stored index
IDENTIFIER_NAME = re.compile(r"(?i:(^|[\s_.-])(id|uid|identifier)$)|[a-z](ID|Id)$")


def reserved_columns(table: pd.DataFrame) -> tuple[str, ...]:
    """The columns of a table that are never features: site, split, image, label, class and those of patients."""
    return (*COLUMNS, *patient_columns(map(str, table.columns)), "class")


@dataclass(frozen=True)
class Features:
    """The features of a row: numeric columns, then one-hot encoded categories, then indicators of missing cells.

    numeric     columns of numbers
    categories  the values of each categorical column; a missing or unlisted value is 0 in all features of its column
    indicators  columns with a further feature that is 1 for a missing cell
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    indicators: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each feature."""
        one_hot = [f"{name}={value}" for name, values in self.categories.items() for value in values]
        return (*self.numeric, *one_hot, *(f"{name} missing" for name in self.indicators))

    def check(self, table: pd.DataFrame, path: str) -> None:
        """Raises ConfigError, naming the table at `path`, for a missing column and for a cell that is not a number."""
        for name in (*self.numeric, *self.categories):
            if name not in table:
                raise ConfigError(f"table {path}: it has no column '{name}', which is a feature of the run; add it")
        for problem in (text for name in self.numeric for text in _non_numeric_problems(name, table[name])):
            raise ConfigError(f"table {path}: {problem}")

    def numeric_values(self, table: pd.DataFrame) -> Array:
        """The numeric columns, (N, numeric) float64, NaN for missing cells."""
        return _stack_columns([to_numbers(table[name]) for name in self.numeric], len(table))

    def binary_values(self, table: pd.DataFrame) -> Array:
        """The one-hot encoded categories and the indicators, (N, categories + indicators) float64."""
        cells = {name: to_categories(table[name]) for name in self.categories}
        one_hot = [(cells[name] == value).fillna(False) for name, values in self.categories.items() for value in values]
        missing = (_is_missing(table[name], name in self.categories) for name in self.indicators)
        return _stack_columns([*one_hot, *missing], len(table))


def _is_missing(cells: pd.Series, categorical: bool) -> pd.Series:
    return (mask_missing_categories(cells) if categorical else mask_missing(cells)).isna()


def _stack_columns(columns: Sequence[pd.Series], rows: int) -> Array:
    return np.stack([column.to_numpy(np.float64) for column in columns], 1) if columns else np.zeros((rows, 0))


@dataclass(frozen=True)
class Standardizer:
    """Fills missing cells with the median, and standardises by mean and standard deviation; each array is (F,)."""

    median: Array
    mean: Array
    deviation: Array

    @classmethod
    def fit(cls, cells: Array, fallback: Standardizer | None = None) -> Standardizer:
        """The statistics of cells (N, F), NaN where a cell is missing.

        All statistics of an empty column, and the deviation of a constant column, are those of `fallback`: otherwise
        later values of such a column would be scaled out of proportion. The default fallback is 0, 0 and 1.
        """
        columns = cells.shape[1]
        fallback = fallback or cls(np.zeros(columns), np.zeros(columns), np.ones(columns))
        empty = np.isnan(cells).all(0)
        known = np.where(empty, 0.0, cells) if len(cells) else np.zeros((1, columns))
        constant = np.nanmax(known, 0) == np.nanmin(known, 0)  # by rounding, their deviation may be just above 0
        return cls(
            np.where(empty, fallback.median, np.nanmedian(known, 0)),
            np.where(empty, fallback.mean, np.nanmean(known, 0)),
            np.where(constant, fallback.deviation, np.nanstd(known, 0)),
        )

    def __call__(self, cells: Array) -> Array:
        """The standardised cells (N, F), without missing values."""
        scaled: Array = (np.where(np.isnan(cells), self.median, cells) - self.mean) / self.deviation
        return scaled


@dataclass(frozen=True)
class FeatureSelection:
    """The columns to use as features.

    columns      names given by the user; None: all numeric columns that are not reserved
    categorical  columns to encode one-hot
    reserved     columns that are not features, such as site and label
    indicators   whether to add an indicator for each column with missing cells
    """

    columns: Sequence[str] | None
    categorical: Sequence[str]
    reserved: Sequence[str]
    indicators: bool

    def select(self, table: pd.DataFrame, is_training: pd.Series, path: str) -> Features:
        """The features of a table; categories and indicators are those of the rows where `is_training` is true.

        Raises ConfigError, naming the table at `path`, for the first of `problems`, and warns of each of `notes`.
        """
        rows = table[is_training]
        numeric = self.numeric_columns(table, rows)
        for problem in self.problems(table, rows, numeric):
            raise ConfigError(f"table {path}: {problem}")
        for note in self.notes(table, rows, numeric):
            warnings.warn(note, stacklevel=5)
        training_cells = {name: rows[name] for name in (*numeric, *self.categorical)}
        incomplete = [
            name for name, cells in training_cells.items() if _is_missing(cells, name in self.categorical).any()
        ]
        categories = {name: tuple(sort_naturally(to_categories(training_cells[name]))) for name in self.categorical}
        return Features(tuple(numeric), categories, tuple(incomplete) if self.indicators else ())

    def numeric_columns(self, table: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
        """The columns of numbers: the given ones, or those that are not reserved and have a number in `rows`."""
        if self.columns is not None:
            return [name for name in dict.fromkeys(self.columns) if name not in self.categorical]
        return [
            name
            for name in self._candidates(table)
            if not non_numeric_values(table[name]) and to_numbers(rows[name]).notna().any()
        ]

    def problems(self, table: pd.DataFrame, rows: pd.DataFrame, numeric: Sequence[str]) -> Iterator[str]:
        """A line for each column that does not exist, is reserved, or has cells that cannot be a feature.

        `rows` are the training rows, and `numeric` the columns of numbers. Only the first line is certain, because the
        first problem may cause the others.
        """
        every = [*numeric, *self.categorical]
        for name in every:
            yield from self._name_problems(name, table)
        for name in dict.fromkeys([*every, *(self._candidates(table) if self.columns is None else ())]):
            yield from _comma_problems(name, table[name])
        for name in numeric:
            yield from _non_numeric_problems(name, table[name])
        for name in every:
            yield from _content_problems(name, rows[name], name in self.categorical)
        if not every:
            left_out = next(_left_out_notes({name: table[name] for name in self._candidates(table)}), "")
            cure = left_out or "add columns of numbers as features"
            yield f"it has no numeric column except {', '.join(self.reserved)}; {cure}"

    def notes(self, table: pd.DataFrame, rows: pd.DataFrame, numeric: Sequence[str]) -> Iterator[str]:
        """A line for columns that are left out, and for each column that is used but may be a mistake."""
        if self.columns is None:
            yield from _left_out_notes({name: table[name] for name in self._candidates(table) if name not in numeric})
            yield from _identifier_notes({name: table[name] for name in numeric})
            unnamed = [
                str(name) for name in table.columns if UNNAMED.fullmatch(str(name)) and table[name].notna().any()
            ]
            if unnamed:
                yield f"columns without a name are not used: {join_names(unnamed)}; name those that are features"
        for name in self.categorical:
            yield from _near_equal_notes(name, rows[name])
        for name in (*numeric, *self.categorical):
            yield from _label_copy_notes(name, table[name], table["label"])

    def _candidates(self, table: pd.DataFrame) -> list[str]:
        taken = (*self.reserved, *self.categorical)
        return [str(name) for name in table.columns if name not in taken and not UNNAMED.fullmatch(str(name))]

    def _name_problems(self, name: str, table: pd.DataFrame) -> Iterator[str]:
        if name in self.reserved:
            yield f"column '{name}' is reserved and cannot be a feature; remove it from task.data.features"
        if name not in table:
            columns = ", ".join(f"'{column}'" for column in table.columns)
            yield f"it has no column '{name}'{did_you_mean(name, table.columns)}; its columns are {columns}"


def _comma_problems(name: str, cells: pd.Series) -> Iterator[str]:
    values = non_numeric_values(cells)
    if values and all(map(COMMA_NUMBER.fullmatch, values)):
        yield (
            f"column '{name}' has numbers with commas, such as '{values[0]}'; write decimal points and no separators "
            "of thousands, as in 1234.5"
        )


def _non_numeric_problems(name: str, cells: pd.Series) -> Iterator[str]:
    if invalid := non_numeric_values(cells):
        count = pluralize(int(mask_missing(cells).isin(invalid).sum()), "cell")
        yield (
            f"column '{name}' has {count} without a number: {join_names([repr(value) for value in invalid])}; "
            "correct the table, or add the column to task.data.categorical"
        )


def _content_problems(name: str, cells: pd.Series, categorical: bool) -> Iterator[str]:
    if _is_missing(cells, categorical).all():
        yield f"column '{name}' is empty in all training rows of inside sites; leave it out"
    if categorical and (number := to_categories(cells).nunique()) > MAX_CATEGORIES:
        yield f"column '{name}' has {number} different values; a categorical column has at most {MAX_CATEGORIES}"


def _left_out_notes(columns: Mapping[str, pd.Series]) -> Iterator[str]:
    if columns:
        values = {name: list(map(repr, non_numeric_values(cells)[:2])) for name, cells in columns.items()}
        found = [f"{name} ({join_names(examples or ['empty'])})" for name, examples in values.items()]
        yield (
            f"columns left out because they are not numeric: {join_names(found)}; list columns of names or codes in "
            "task.data.categorical"
        )


def _identifier_notes(columns: Mapping[str, pd.Series]) -> Iterator[str]:
    cure = "leave it out: list all other columns in task.data.features"
    for name in filter(IDENTIFIER_NAME.search, columns):
        yield f"column '{name}' has the name of an identifier and is used as a feature; if it identifies cases, {cure}"
    for name, cells in columns.items():
        if _looks_like_row_number(to_numbers(cells)):
            yield f"column '{name}' has a different whole number in each row; if it numbers the cases, {cure}"


def _label_copy_notes(name: str, cells: pd.Series, labels: pd.Series) -> Iterator[str]:
    known = pd.DataFrame({"value": mask_missing(cells), "label": labels}).dropna()
    pairs = known.drop_duplicates()
    if len(known) >= MIN_ROWS_OF_COPY and len(pairs) == pairs["value"].nunique() == pairs["label"].nunique() > 1:
        yield (
            f"column '{name}' has exactly one value for each label, so it reveals the label; if it is a copy of the "
            "label, leave it out: list all other columns in task.data.features"
        )


def _near_equal_notes(name: str, cells: pd.Series) -> Iterator[str]:
    if groups := near_equal_names(to_categories(cells).dropna().unique()):
        found = join_names([" and ".join(map(repr, group)) for group in groups])
        yield f"column '{name}' has values that seem to be one category: {found}; use one spelling for each category"


def _looks_like_row_number(values: pd.Series) -> bool:
    return len(values) > 2 and bool(values.notna().all() and values.is_unique and (values % 1 == 0).all())
