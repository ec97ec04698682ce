"""Assigns the rows of a table to sites and splits, and limits labels; the rows of a patient stay together."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.core.seeding import numpy_generator
from raysim.core.suggestions import did_you_mean
from raysim.data.patient_columns import patient_columns
from raysim.data.site_names import site_name_problems
from raysim.data.table import SPLITS, sort_rows

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How the rows of a table are assigned to new sites."""

    name: Annotated[
        Literal["by", "iid", "dirichlet"] | None,
        "how rows are split into sites. by: one site per value of a column; iid: equal random shares; "
        "dirichlet: skewed shares; by default 'by' if `by` is set, else 'iid'",
    ] = None
    by: Annotated[
        str | None,
        "column. For 'by': its values are the sites; for 'dirichlet': shares are drawn for each of its values "
        "(by default only the sizes of the sites are skewed)",
    ] = None
    sites: Annotated[int, Ge(1), "number of sites that 'iid' and 'dirichlet' create"] = 4
    alpha: Annotated[float, Gt(0), "concentration of 'dirichlet': the smaller it is, the more skewed the shares"] = 0.5


def partition(table: pd.DataFrame, spec: Partition, seed: int) -> pd.DataFrame:
    """The table with new sites, sorted: `site-01`, ... or the values of the column `by`.

    'iid' and 'dirichlet' partition each split separately, keep the rows of a patient (the first column
    of `patient_columns`) at one site, and give every site a training row. 'dirichlet' draws the shares
    p ~ Dir(alpha) of the sites for each class, or once if `by` is not given; they apply to every split (Hsu et al.,
    2019, https://arxiv.org/abs/1909.06335). Raises ConfigError if `spec` does not fit the table.
    """
    table = sort_rows(table)
    name = spec.name or ("iid" if spec.by is None else "by")
    for problem in _spec_problems(table, spec, name):
        raise ConfigError(f"task.data.partition: {problem}")
    if name == "by":
        return sort_rows(table.assign(site=table[str(spec.by)].astype("string")))
    groups = _summarize_groups(table, spec.by, seed)
    training_groups = int((groups["split"] == 0).sum())
    if training_groups < spec.sites:
        raise ConfigError(
            f"task.data.partition.sites={spec.sites}: every site needs a training case, and the table has "
            f"{training_groups} (all rows of a patient count as one case); "
            f"set task.data.partition.sites to at most {training_groups}"
        )
    site_of_group = _assign_evenly(groups, spec.sites) if name == "iid" else _assign_by_dirichlet(groups, spec, seed)
    width = max(2, len(str(spec.sites)))
    sites = patient_groups(table).map(site_of_group).map(lambda site: f"site-{site + 1:0{width}}")
    return sort_rows(table.assign(site=sites.astype("string")))


def keep_labelled(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The table with `count` labelled training rows at each site; the other training rows become unlabelled.

    Patients are selected in an order that does not depend on `count`, and only the last selected patient may lose
    rows. So the rows selected with a smaller count are also selected with a larger one. A site with fewer rows keeps
    all. Raises ConfigError if `count` is less than 1.
    """
    if count < 1:
        raise ConfigError(f"task.data.labelled={count}: expected 1 or more labelled training cases per site")
    table = sort_rows(table)
    train = table["split"] == "train"
    for site, rows in table[train].groupby("site"):
        groups = patient_groups(rows)
        sizes = shuffled_group_sizes(groups, seed, "labelled", str(site))
        rank = groups.map(dict(zip(sizes.index, range(len(sizes)), strict=True)))
        train[rank.sort_values(kind="stable").index[:count]] = False
    return sort_rows(table.assign(split=table["split"].mask(train, "unlabelled"), label=table["label"].mask(train)))


def assign_splits(table: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.DataFrame:
    """The table with a random `split` for each row, in these fractions at each site.

    All rows of a patient have the same split, so the fractions are exact up to half a patient. Raises ConfigError for
    an unknown split, and for fractions that are negative or do not add up to 1.
    """
    for split, fraction in fractions.items():
        if split not in SPLITS:
            raise ConfigError(f"unknown split '{split}'{did_you_mean(split, SPLITS)}; use {', '.join(SPLITS)}")
        if not fraction >= 0:
            raise ConfigError(f"the fraction of '{split}' is {fraction}; it must be 0 or more")
    shares = np.array([fractions.get(split, 0.0) for split in SPLITS])
    if abs(shares.sum() - 1) > 1e-6:
        raise ConfigError(f"the fractions {dict(fractions)} add up to {shares.sum():g}; they must add up to 1")
    table = sort_rows(table)
    splits = pd.Series("", table.index, dtype="string")
    for site, rows in table.groupby("site"):
        groups = patient_groups(rows)
        sizes = shuffled_group_sizes(groups, seed, "split", str(site))
        assigned = [SPLITS[index] for index in _assign_shares(sizes, shares)]
        splits[rows.index] = groups.map(dict(zip(sizes.index, assigned, strict=True)))
    return sort_rows(table.assign(split=splits))


def add_validation_rows(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The table with val rows at the sites that have none: this share of the training rows of the site.

    All rows of a patient stay together, so the share is exact up to half a patient. At least one patient of a site
    has val rows and at least one has training rows; a site with a single patient does not change.
    """
    table = sort_rows(table)
    split = table["split"].copy()
    validated = table.loc[table["split"] == "val", "site"].unique()
    for site, rows in table[(table["split"] == "train") & ~table["site"].isin(validated)].groupby("site"):
        groups = patient_groups(rows)
        sizes = shuffled_group_sizes(groups, seed, "val", str(site))
        if len(sizes) > 1:
            assigned = _assign_shares(sizes, np.array([1 - share, share]))
            assigned[[0, -1]] = 0, 1
            is_val = groups.map(dict(zip(sizes.index, assigned == 1, strict=True)))
            split[rows.index] = rows["split"].mask(is_val, "val")
    return sort_rows(table.assign(split=split))


def _spec_problems(table: pd.DataFrame, spec: Partition, name: str) -> Iterator[str]:
    by, columns = spec.by, ", ".join(map(str, table.columns))
    if by is None:
        if name == "by":
            yield f"'by' needs a column; set task.data.partition.by=COLUMN. The columns of the table are {columns}"
        return
    if name == "iid":
        yield f"by={by} has no effect with name=iid; remove one of the two"
    if by not in table:
        yield f"the table has no column '{by}'{did_you_mean(by, table.columns)}; use one of its columns: {columns}"
    empty = table[by].isna() & ((name == "by") | (table["split"] != "unlabelled"))
    if empty.any():
        rows = pluralize(len(table), "row")
        yield f"column '{by}' is empty in {empty.sum()} of {rows}; fill these cells, or choose another column"
    if name == "by":
        yield from site_name_problems(table[by].astype(str).unique())
    elif table[by].nunique() == len(table) > 1:
        yield f"column '{by}' has a different value in each of its {len(table)} rows; choose a column of classes"


def _patient_column(table: pd.DataFrame) -> str | None:
    return next(iter(patient_columns(map(str, table.columns))), None)


def patient_groups(table: pd.DataFrame) -> pd.Series[str]:
    """The group of each row: its patient, or the row itself if it has none. The rows of a group stay together."""
    single_rows = pd.Series([f"row {number}" for number in range(len(table))], table.index, dtype="string")
    column = _patient_column(table)
    return single_rows if column is None else ("group " + table[column].astype("string")).fillna(single_rows)


def shuffled_group_sizes(groups: pd.Series[str], *key: int | str) -> pd.Series[int]:
    """The number of rows of each group; the groups are in a random order that `key` seeds."""
    sizes = groups.groupby(groups).size()
    return sizes.iloc[numpy_generator(*key).permutation(len(sizes))]


def _summarize_groups(table: pd.DataFrame, by: str | None, seed: int) -> pd.DataFrame:
    """For each group, in random order: the number of its rows, the index of its first split, and its class."""
    groups = patient_groups(table)
    stratum = table[by].astype("string").fillna("") if by else pd.Series("", table.index)
    facts = pd.DataFrame({"rows": 1, "split": table["split"].map(SPLITS.index), "stratum": stratum})
    summary = facts.groupby(groups).agg({"rows": "sum", "split": "min", "stratum": "first"})
    return summary.loc[shuffled_group_sizes(groups, seed, "partition").index]


def _assign_shares(sizes: pd.Series[int], shares: Floats) -> Ints:
    """The index of the share of each group: groups fill the shares in order, by the position of a group's middle."""
    middle = (sizes.cumsum() - sizes / 2) / sizes.sum()
    # By rounding, the shares may add up to slightly less than 1.
    return np.minimum(np.searchsorted(shares.cumsum(), middle, side="right"), len(shares) - 1)


def _assign_evenly(groups: pd.DataFrame, sites: int) -> dict[str, int]:
    """The site of each group: in each split, the largest groups first, each to the site with the fewest rows."""
    site_of_group: dict[str, int] = {}
    totals = [0] * sites
    for _, part in groups.groupby("split"):
        heap = sorted((0, totals[site], site) for site in range(sites))
        for group, rows in part["rows"].sort_values(ascending=False, kind="stable").items():
            split_rows, _, site = heapq.heappop(heap)
            site_of_group[str(group)] = site
            totals[site] += rows
            heapq.heappush(heap, (split_rows + rows, totals[site], site))
    return site_of_group


def _assign_by_dirichlet(groups: pd.DataFrame, spec: Partition, seed: int) -> dict[str, int]:
    """The site of each group, by shares drawn for each class; a site without a training case gets one from another."""
    site_of_group = pd.Series(0, groups.index)
    for (stratum, _), part in groups.groupby(["stratum", "split"]):
        shares = numpy_generator(seed, "shares", str(stratum)).dirichlet(np.full(spec.sites, spec.alpha))
        site_of_group[part.index] = _assign_shares(part["rows"], shares)
    train = groups.index[groups["split"] == 0]
    counts = np.bincount(site_of_group[train], minlength=spec.sites)
    for site in np.flatnonzero(counts == 0):
        # The site with the most groups has two or more, because there are at least as many groups as sites.
        donor = int(counts.argmax())
        moved = train[site_of_group[train] == donor][0]
        site_of_group[moved] = int(site)
        counts[donor] -= 1
    return {str(group): int(site) for group, site in site_of_group.items()}
