"""Columns with several labels or a number: texts, cells, and refused values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raysim.core.errors import ConfigError
from raysim.core.targets import Target
from raysim.data.label_columns import (
    case_label,
    decode_labels,
    label_counts,
    label_rows,
    number_label,
    number_ranges,
    several_labels,
)


def table(**columns: list[str]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    splits = ["train"] * (count - 1) + ["unlabelled"]
    index = range(2, count + 2)
    return pd.DataFrame({"split": splits, **columns}, index=index, dtype="string")


def test_zeros_and_ones_become_a_tuple() -> None:
    rows = several_labels(table(edema=["1", "0.0", "?"], mass=["0", "1", "1"]), ["edema", "mass"], "t.csv")
    assert rows["label"].tolist() == ["10", "01", pd.NA]
    decoded = decode_labels(rows, Target.LABELS)
    assert decoded["label"].tolist() == [(1, 0), (0, 1), pd.NA]
    assert label_counts(decoded, ["edema", "mass"]) == "labels: edema 1, mass 1 of 2 labelled cases"


def test_numbers_become_floats() -> None:
    decoded = decode_labels(number_label(table(age=["40.5", " 7", ""]), "age", "t.csv"), Target.NUMBER)
    assert decoded["label"].tolist() == [40.5, 7.0, pd.NA]
    assert number_ranges(decoded, "age") == "age: 7 to 40.5, mean 23.75 (2 labelled cases)"


def test_rows_have_a_type_for_each_kind_of_label() -> None:
    for labels, rows, dtype in [
        ([2, 0], [[2], [0]], np.uint8),
        ([(1, 0), (0, 1)], [[1, 0], [0, 1]], np.uint8),
        ([2.5], [[2.5]], np.float32),
    ]:
        found = label_rows(labels)
        assert (found.tolist(), found.dtype) == (rows, dtype)


def test_cells_of_the_label_column() -> None:
    cells = [pd.NA, "mask.png", np.int64(3), 2.5, (1, 0)]
    assert [case_label(cell) for cell in cells] == [None, "mask.png", 3, 2.5, (1, 0)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["2", "0", "0"], "column edema: expected 0 or 1, not '2' in row 2; correct the cells, or remove the rows"),
        (["-1", "yes", "1"], "not '-1' in row 2, 'yes' in row 3"),
        (["NA", "0", "0"], "empty edema cells in row 2; every row needs a value for edema unless its split is"),
    ],
)
def test_other_cells_are_refused(cells: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"table t\.csv: ") as error:
        several_labels(table(edema=cells), ["edema"], "t.csv")
    assert message in str(error.value)


@pytest.mark.parametrize("cell", ["old", "inf", "1e999"])
def test_other_numbers_are_refused(cell: str) -> None:
    with pytest.raises(ConfigError, match=f"column age: expected a finite number, not '{cell}' in row 2"):
        number_label(table(age=[cell, "3", "4"]), "age", "t.csv")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no column 'edma' \(did you mean 'edema'\?\); its other columns are edema"):
        several_labels(table(edema=["1", "0"]), ["edma"], "t.csv")


def test_cells_may_be_empty_if_they_are_not_needed() -> None:
    rows = several_labels(table(a=["1", "", "1"], b=["1", "1", "1"]), ["a", "b"], "t.csv", needed=False)
    assert rows["label"].tolist() == ["11", pd.NA, pd.NA]
