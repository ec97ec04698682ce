"""What the data of every task that reads a table have in common: which rows they are, and at which sites."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Ge

from raysim.core.errors import ConfigError
from raysim.data.file_paths import ABSOLUTE_PATH
from raysim.data.partition import Partition, apply_partition, keep_labelled, partition
from raysim.tasks.factory_lookup import unknown


@dataclass(frozen=True, kw_only=True)
class TableData:
    """Which rows, at which sites. Tasks extend it with fields of their own, so that each is written once."""

    table: Annotated[
        str, ABSOLUTE_PATH, "CSV or Parquet file, or URL, with the columns site, split, label, and image or features"
    ] = ""
    outside: Annotated[tuple[str, ...], "sites that are only judged: of the table, or that partition makes"] = ()
    exclude_sites: Annotated[tuple[str, ...], "sites that take no part: of the table, or that partition makes"] = ()
    partition: Annotated[Partition | None, "makes new sites from the table's, but for those outside or left out"] = None
    labelled: Annotated[int | None, Ge(1), "labelled training rows each site keeps; by default all"] = None
    seed: Annotated[int, Ge(0), "draws partition, scanners and labelled rows, apart from the run's seed"] = 0
    cache: Annotated[
        str | None, ABSOLUTE_PATH, "folder of prepared data; by default $RAYSIM_CACHE, else raysim in the user's cache"
    ] = None

    def shared_out(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `table` with the sites, splits and labels that this task uses.

        Warns of patients in several splits. Raises ConfigError where these fields do not fit the table.
        """
        if told := apply_partition(table):
            warnings.warn(told, stacklevel=4)
        known = set(table["site"])
        table = _without(table, self.exclude_sites)
        if self.partition is not None:
            table = self._parted(table, self.partition)
            made = set(table["site"])
            table, known = _without(table, set(self.exclude_sites) - known), known | made
        _check_sites("exclude_sites", self.exclude_sites, known)
        if self.labelled is not None:
            table = keep_labelled(table, self.labelled, self.seed)
        _check_sites("outside", self.outside, set(table["site"]))
        if set(table["site"]) <= set(self.outside):
            raise ConfigError(f"task.data.outside={list(self.outside)} leaves no site to train at; take one out")
        return table

    def _parted(self, table: pd.DataFrame, spec: Partition) -> pd.DataFrame:
        away = table["site"].isin(self.outside)  # a site to judge on must not be shared out to train on
        made = partition(table[~away], spec, self.seed)
        for site in sorted(set(made["site"]) & set(table[away]["site"])):
            raise ConfigError(
                f"task.data.partition makes a site '{site}', which task.data.outside or --holdout names too; rename one"
            )
        return pd.concat([made, table[away]], ignore_index=True)


def _without(table: pd.DataFrame, sites: Collection[str]) -> pd.DataFrame:
    return table[~table["site"].isin(sites)].reset_index(drop=True)


def _check_sites(key: str, sites: Iterable[str], found: Collection[str]) -> None:
    for site in sites:
        if site not in found:
            raise unknown(f"site in task.data.{key}:", site, found)
