"""Who holds which rows: sites made from one table, few labels, and splits, never parting the rows of a patient."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.seeding import numpy_generator
from raysim.core.suggestions import did_you_mean
from raysim.data.table import GROUPS, SPLITS, in_order, site_faults

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How one table becomes many sites."""

    name: Annotated[
        Literal["by", "iid", "dirichlet"] | None,
        "a column's values, equal shares, or skewed shares; not given: 'by' where `by` is, else 'iid'",
    ] = None
    by: Annotated[
        str | None,
        "column: of 'by', the sites; of 'dirichlet', the classes that are skewed (none: only the sizes are)",
    ] = None
    sites: Annotated[int, Ge(1), "number of sites that 'iid' and 'dirichlet' make"] = 4
    alpha: Annotated[float, Gt(0), "concentration of 'dirichlet': small is skewed, large is even"] = 0.5


def partition(table: pd.DataFrame, spec: Partition, seed: int) -> pd.DataFrame:
    """The table with new sites, in order: `site-01`, ... or the values of the column `by`.

    'iid' and 'dirichlet' share out each split by itself, keep the rows of a patient (the first of the columns
    patient, subject, case, group) at one site and give every site a training row. 'dirichlet' draws for each
    class, or once where `by` names none, shares p ~ Dir(alpha) that hold in every split (Hsu et al., 2019,
    https://arxiv.org/abs/1909.06335). Raises ConfigError where the table does not allow it.
    """
    table = in_order(table)
    name = spec.name or ("iid" if spec.by is None else "by")
    for fault in _faults(table, spec, name):
        raise ConfigError(f"task.data.partition: {fault}")
    if name == "by":
        return in_order(table.assign(site=table[str(spec.by)].astype("string")))
    units = _units(table, spec.by, seed)
    trained = int((units["split"] == 0).sum())
    if trained < spec.sites:
        raise ConfigError(
            f"task.data.partition.sites={spec.sites}: every site needs a training case, and there are {trained} "
            f"(the rows of a patient count once); set task.data.partition.sites to at most {trained}"
        )
    homes = _even(units, spec.sites) if name == "iid" else _skewed(units, spec, seed)
    width = max(2, len(str(spec.sites)))
    sites = _groups(table).map(homes).map(lambda site: f"site-{site + 1:0{width}}")
    return in_order(table.assign(site=sites.astype("string")))


def keep_labelled(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The table with `count` labelled training rows at each site, the other training rows being unlabelled.

    Whole patients are kept, in an order that does not depend on `count`, and only the last one is cut: what
    a smaller count keeps a larger one keeps too. A site with fewer rows keeps all. Raises ConfigError if
    `count` is less than 1.
    """
    if count < 1:
        raise ConfigError(f"task.data.labelled={count}: a site keeps at least 1 labelled training case")
    table = in_order(table)
    train = table["split"] == "train"
    for site, rows in table[train].groupby("site"):
        groups = _groups(rows)
        sizes = _shuffled(groups, seed, "labelled", str(site))
        rank = groups.map(dict(zip(sizes.index, range(len(sizes)), strict=True)))
        train[rank.sort_values(kind="stable").index[:count]] = False
    return in_order(table.assign(split=table["split"].mask(train, "unlabelled"), label=table["label"].mask(train)))


def split_fractions(table: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.DataFrame:
    """The table with `split` drawn at each site in these fractions, to half a patient, patients kept whole.

    Raises ConfigError for a name that is no split, and for fractions below 0 or that do not add up to 1.
    """
    for split, fraction in fractions.items():
        if split not in SPLITS:
            raise ConfigError(f"no split is called '{split}'{did_you_mean(split, SPLITS)}; use {', '.join(SPLITS)}")
        if not fraction >= 0:
            raise ConfigError(f"the fraction of '{split}' is {fraction}; it must be 0 or more")
    shares = np.array([fractions.get(split, 0.0) for split in SPLITS])
    if abs(shares.sum() - 1) > 1e-6:
        raise ConfigError(f"the fractions {dict(fractions)} add up to {shares.sum():g}; they must add up to 1")
    table = in_order(table)
    splits = pd.Series("", table.index, dtype="string")
    for site, rows in table.groupby("site"):
        groups = _groups(rows)
        sizes = _shuffled(groups, seed, "split", str(site))
        drawn = [SPLITS[place] for place in _cut(sizes, shares)]
        splits[rows.index] = groups.map(dict(zip(sizes.index, drawn, strict=True)))
    return in_order(table.assign(split=splits))


def apply_partition(table: pd.DataFrame) -> str | None:
    """What to say of patients with rows in more than one of train, val and test; None where there are none.

    A patient is one of its site: several sites may use the same numbers.
    """
    column = _patient_column(table)
    if column is None:
        return None
    splits = table[table["split"] != "unlabelled"].groupby(["site", column])["split"].unique()
    rows = splits[splits.map(len) > 1].reset_index().itertuples(index=False)
    torn = [f"{patient} of {site} ({', '.join(sorted(held, key=SPLITS.index))})" for site, patient, held in rows]
    told = f"patients (column '{column}') in more than one of train, val and test: {len(torn)}, {join_names(torn)}; "
    return f"{told}keep each in one split, for scores come out too good" if torn else None


def _faults(table: pd.DataFrame, spec: Partition, name: str) -> Iterator[str]:
    by, columns = spec.by, ", ".join(map(str, table.columns))
    if by is None:
        if name == "by":
            yield f"'by' needs a column, task.data.partition.by=COLUMN; the table has {columns}"
        return
    if name == "iid":
        yield f"'iid' takes no column, but by={by}; leave one of the two out"
    if by not in table:
        yield f"the table has no column '{by}'{did_you_mean(by, table.columns)}; it has {columns}"
    empty = table[by].isna() & ((name == "by") | (table["split"] != "unlabelled"))
    if empty.any():
        yield f"{empty.sum()} of {pluralize(len(table), 'row')} have nothing in column '{by}'; fill it, or choose another"
    if name == "by":
        yield from site_faults(table[by].astype(str).unique())
    elif table[by].nunique() == len(table) > 1:
        yield f"column '{by}' has another value in each of its {len(table)} rows; name a column of classes"


def _patient_column(table: pd.DataFrame) -> str | None:
    return next((name for name in GROUPS if name in table), None)


def _groups(table: pd.DataFrame) -> pd.Series[str]:
    """For each row the group that it never leaves; without a patient, the row is a group of its own."""
    lone = pd.Series([f"row {place}" for place in range(len(table))], table.index, dtype="string")
    column = _patient_column(table)
    return lone if column is None else ("group " + table[column].astype("string")).fillna(lone)


def _shuffled(groups: pd.Series[str], *key: int | str) -> pd.Series[int]:
    """The number of rows of each group, the groups in the order of the seed."""
    sizes = groups.groupby(groups).size()
    return sizes.iloc[numpy_generator(*key).permutation(len(sizes))]


def _units(table: pd.DataFrame, by: str | None, seed: int) -> pd.DataFrame:
    """For each group, in the order of the seed: its rows, the number of its first split, and its class."""
    groups = _groups(table)
    kind = table[by].astype("string").fillna("") if by else pd.Series("", table.index)
    facts = pd.DataFrame({"rows": 1, "split": table["split"].map(SPLITS.index), "kind": kind})
    units = facts.groupby(groups).agg({"rows": "sum", "split": "min", "kind": "first"})
    return units.loc[_shuffled(groups, seed, "partition").index]


def _cut(sizes: pd.Series[int], shares: Floats) -> Ints:
    """Which share each group falls into, in order; the middle of a group decides."""
    middle = (sizes.cumsum() - sizes / 2) / sizes.sum()
    # Rounding may leave the last share's end a hair below 1.
    return np.minimum(np.searchsorted(shares.cumsum(), middle, side="right"), len(shares) - 1)


def _even(units: pd.DataFrame, sites: int) -> dict[str, int]:
    """The site of each group: in each split the largest go first, to the site that holds least."""
    homes: dict[str, int] = {}
    totals = [0] * sites
    for _, part in units.groupby("split"):
        heap = sorted((0, totals[site], site) for site in range(sites))
        for group, rows in part["rows"].sort_values(ascending=False, kind="stable").items():
            held, _, site = heapq.heappop(heap)
            homes[str(group)] = site
            totals[site] += rows
            heapq.heappush(heap, (held + rows, totals[site], site))
    return homes


def _skewed(units: pd.DataFrame, spec: Partition, seed: int) -> dict[str, int]:
    """The site of each group by shares drawn for each class; a site left without training cases is given one."""
    homes = pd.Series(0, units.index)
    for (kind, _), part in units.groupby(["kind", "split"]):
        drawn = numpy_generator(seed, "shares", str(kind)).dirichlet(np.full(spec.sites, spec.alpha))
        homes[part.index] = _cut(part["rows"], drawn)
    train = units.index[units["split"] == 0]
    held = np.bincount(homes[train], minlength=spec.sites)
    for site in np.flatnonzero(held == 0):
        # From the site with the most groups: it has two or more, as there are at least as many as sites.
        giver = int(held.argmax())
        moved = train[homes[train] == giver][0]
        homes[moved] = int(site)
        held[giver] -= 1
    return {str(group): int(site) for group, site in homes.items()}
