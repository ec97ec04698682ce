"""The keys under `task.data` that all tasks with a table share: the table, its sites, partition and labels."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
from annotated_types import Ge, Gt, Lt

from raysim.core.errors import ConfigError
from raysim.data.file_paths import ABSOLUTE_PATH
from raysim.data.folds import use_fold
from raysim.data.near_equal import near_equal_sites_warning
from raysim.data.partition import Partition, add_validation_rows, keep_labelled, partition
from raysim.data.patient_warnings import patient_warnings
from raysim.tasks.factory_lookup import unknown_name_error

# The values of the keys that apply to one table only, when a trained task reads another one.
ANOTHER_TABLE: dict[str, Any] = {
    "outside": (),
    "exclude_sites": (),
    "partition": None,
    "labelled": None,
    "val": None,
    "folds": None,
    "fold": None,
}


@dataclass(frozen=True, kw_only=True)
class TableData:
    """The rows that are used, and their sites. Tasks add their fields in subclasses."""

    table: Annotated[
        str, ABSOLUTE_PATH, "CSV or Parquet file, or URL, with the columns site, split, label, and image or features"
    ] = ""
    outside: Annotated[tuple[str, ...], "sites of the table or of `partition` that are only evaluated"] = ()
    exclude_sites: Annotated[tuple[str, ...], "sites of the table or of `partition` that are not used"] = ()
    partition: Annotated[
        Partition | None, "splits the rows into new sites, except the rows of outside and excluded sites"
    ] = None
    labelled: Annotated[
        int | None, Ge(1), "labelled training rows of each site; the others lose their label; by default all"
    ] = None
    val: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        "share of the training rows that become val rows, by patient, at each site without val rows; by default none",
    ] = None
    folds: Annotated[
        int | None, Ge(2), "number of folds of the labelled rows of each inside site, by patient; needs `fold`"
    ] = None
    fold: Annotated[
        int | None, Ge(0), "the fold of the test rows, 0 to folds - 1; val rows of other folds remain val rows"
    ] = None
    seed: Annotated[
        int, Ge(0), "seed of partition, folds, val rows, scanners and labelled rows, separate from the run's seed"
    ] = 0
    cache: Annotated[
        str | None,
        ABSOLUTE_PATH,
        "folder of prepared data; by default $RAYSIM_CACHE, else raysim in the user's cache folder",
    ] = None

    def select_rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `table` with the sites, splits and labels that this task uses.

        Warns of patients in several splits or at several sites, and of nearly equal names. Raises ConfigError if
        these fields do not fit the table.
        """
        self._check_fold()
        all_sites = set(table["site"])
        table = _drop_sites(table, self.exclude_sites)
        if self.partition is not None:
            table = self._partition_sites(table, self.partition)
            partitioned = set(table["site"])
            table, all_sites = _drop_sites(table, set(self.exclude_sites) - all_sites), all_sites | partitioned
        if self.folds is not None and self.fold is not None:
            table = use_fold(table, self.folds, self.fold, self.outside, self.seed)
        if self.val is not None:
            table = add_validation_rows(table, self.val, self.seed)
        for warning in (near_equal_sites_warning(table["site"].unique()), *patient_warnings(table)):
            if warning is not None:
                warnings.warn(warning, stacklevel=4)
        _check_sites("exclude_sites", self.exclude_sites, all_sites)
        if self.labelled is not None:
            table = keep_labelled(table, self.labelled, self.seed)
        _check_sites("outside", self.outside, set(table["site"]))
        if set(table["site"]) <= set(self.outside):
            raise ConfigError(
                f"task.data.outside={list(self.outside)}: all sites are outside sites, so no site trains; remove a name"
            )
        return table

    def _check_fold(self) -> None:
        if (self.folds is None) != (self.fold is None):
            given, other = ("folds", "fold") if self.fold is None else ("fold", "folds")
            raise ConfigError(f"task.data.{given} needs task.data.{other}; set both, or remove task.data.{given}")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ConfigError(f"task.data.fold={self.fold}: expected 0 to {self.folds - 1} (task.data.folds - 1)")

    def _partition_sites(self, table: pd.DataFrame, spec: Partition) -> pd.DataFrame:
        is_outside = table["site"].isin(self.outside)  # rows of an outside site must not become training rows
        partitioned = partition(table[~is_outside], spec, self.seed)
        for site in sorted(set(partitioned["site"]) & set(table[is_outside]["site"])):
            raise ConfigError(
                f"task.data.partition creates a site '{site}', but task.data.outside or --holdout has the same name; "
                "rename one of the two"
            )
        return pd.concat([partitioned, table[is_outside]], ignore_index=True)


def _drop_sites(table: pd.DataFrame, sites: Collection[str]) -> pd.DataFrame:
    return table[~table["site"].isin(sites)].reset_index(drop=True)


def _check_sites(key: str, sites: Iterable[str], found: Collection[str]) -> None:
    for site in sites:
        if site not in found:
            raise unknown_name_error(f"site in task.data.{key}:", site, found)
