"""What the data of every task that reads a table have in common: which rows they are, and at which sites."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from annotated_types import Ge

from raysim.data.files import ABSOLUTE
from raysim.data.partition import Partition, keep_labelled, parted, partition
from raysim.errors import ConfigError
from raysim.tasks.lookup import unknown


@dataclass(frozen=True, kw_only=True)
class TableData:
    """Which rows, at which sites. Tasks extend it with fields of their own, so that each is written once."""

    table: Annotated[
        str, ABSOLUTE, "CSV or Parquet file, or URL, with the columns site, split, label, and image or features"
    ] = ""
    outside: Annotated[tuple[str, ...], "sites that are only judged"] = ()
    partition: Annotated[Partition | None, "makes new inside sites from the table's"] = None
    labelled: Annotated[int | None, Ge(1), "labelled training rows each site keeps; by default all"] = None
    seed: Annotated[int, Ge(0), "draws partition, scanners and labelled rows, apart from the run's seed"] = 0
    cache: Annotated[
        str | None, ABSOLUTE, "folder of prepared data; by default $RAYSIM_CACHE, else raysim in the user's cache"
    ] = None

    def shared_out(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `table` with the sites, splits and labels that this task uses.

        Warns of patients in several splits. Raises ConfigError where these fields do not fit the table.
        """
        if told := parted(table):
            warnings.warn(told, stacklevel=4)
        if self.partition is not None:
            table = self._parted(table, self.partition)
        if self.labelled is not None:
            table = keep_labelled(table, self.labelled, self.seed)
        found = set(table["site"])
        for site in self.outside:
            if site not in found:
                raise unknown("site in task.data.outside:", site, found)
        if found <= set(self.outside):
            raise ConfigError(f"task.data.outside={list(self.outside)} leaves no site to train at; take one out")
        return table

    def _parted(self, table: pd.DataFrame, spec: Partition) -> pd.DataFrame:
        away = table["site"].isin(self.outside)  # a site to judge on must not be shared out to train on
        made = partition(table[~away], spec, self.seed)
        for site in sorted(set(made["site"]) & set(self.outside)):
            raise ConfigError(f"task.data.partition makes a site '{site}', which is in task.data.outside; rename one")
        return pd.concat([made, table[away]], ignore_index=True)
