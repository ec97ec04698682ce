"""Folds of each site for cross-validation, by patient."""

from __future__ import annotations

import heapq
from collections.abc import Collection

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.data.partition import patient_groups, shuffled_group_sizes
from raysim.data.table import sort_rows

EVALUABLE = ("train", "val", "test")


def use_fold(table: pd.DataFrame, folds: int, fold: int, outside: Collection[str], seed: int) -> pd.DataFrame:
    """The table in which the test rows of each inside site are those of one of its folds.

    The labelled rows of a site, of any split, are divided into `folds` folds of nearly equal size, with all rows of a
    patient in one fold. The folds depend on the table and on `seed`, not on `fold`. The val rows outside the fold
    remain val rows; the other rows outside the fold are training rows. Unlabelled rows and outside sites do not change.
    The folds of a table of images with a column `fold` are those of the column, and rows without a fold do not change.
    Raises ConfigError for a site with fewer patients than folds.
    """
    table = sort_rows(table)
    folded = table["split"].isin(EVALUABLE) & ~table["site"].isin(outside)
    if "fold" in table and "image" in table:
        return _test_rows(table, _given_folds(table["fold"][folded].dropna(), folds) == fold)
    of_sites = []
    for site, rows in table[folded].groupby("site"):
        groups = patient_groups(rows)
        sizes = shuffled_group_sizes(groups, seed, "folds", str(site))
        if len(sizes) < folds:
            raise ConfigError(
                f"task.data.folds={folds}: site '{site}' has {len(sizes)} cases (all rows of a patient count as one); "
                f"set task.data.folds to at most {len(sizes)}, or add the site to task.data.exclude_sites"
            )
        of_sites.append(groups.map(_assign_folds(sizes, folds)) == fold)
    return _test_rows(table, pd.concat(of_sites)) if of_sites else table


def _test_rows(table: pd.DataFrame, is_test: pd.Series[bool]) -> pd.DataFrame:
    """The table whose test rows, among the rows of `is_test`, are those with True; other rows do not change."""
    split = table["split"].copy()
    before = split[is_test.index]
    split[is_test.index] = before.mask(before == "test", "train").mask(is_test, "test")
    return sort_rows(table.assign(split=split))


def _given_folds(cells: pd.Series, folds: int) -> pd.Series:
    """The folds in the column `fold` of a table of images. Raises ConfigError unless they are 0 to `folds` - 1."""
    numbers = pd.to_numeric(cells, errors="coerce")
    if set(numbers) != set(range(folds)):
        found = ", ".join(sorted(set(map(str, cells))))
        raise ConfigError(
            f"task.data.folds={folds}: the column fold of the table has {found}; expected 0 to {folds - 1}. Set "
            "task.data.folds to the number of its folds, or remove the column for other folds"
        )
    return numbers


def _assign_folds(sizes: pd.Series[int], folds: int) -> dict[str, int]:
    """The fold of each group: the largest groups first, each to the fold with the fewest rows."""
    heap = [(0, fold) for fold in range(folds)]
    fold_of_group = {}
    for group, rows in sizes.sort_values(ascending=False, kind="stable").items():
        total, fold = heapq.heappop(heap)
        fold_of_group[str(group)] = fold
        heapq.heappush(heap, (total + rows, fold))
    return fold_of_group
