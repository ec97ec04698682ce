"""The sites of a table of features: worked out from the table in one go, kept in the cache, opened by mapping."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from raysim.core.contracts import SPLITS, Data
from raysim.core.errors import ConfigError
from raysim.data.cache import cached, digest
from raysim.data.features import Features, Scale
from raysim.data.image_sites import data_from_arrays

Array = np.ndarray[Any, np.dtype[Any]]
TRAINED = ("train", "unlabelled")  # what a site may learn from; labels play no part in a scale
Standard = Literal["per_site", "global"]


@dataclass(frozen=True)
class TabularRows:
    """What a table says, ready to be made into arrays: its rows with class indices as `label`, and their features."""

    table: pd.DataFrame
    features: Features
    standard: Standard
    outside: tuple[str, ...]

    def sizes(self) -> dict[str, dict[str, int]]:
        """How many rows each site has in each split, by site."""
        return {site: {s: int((rows["split"] == s).sum()) for s in SPLITS} for site, rows in self.by_site.items()}

    def entries(self) -> dict[str, str]:
        """The names in the cache: they tell all that goes into the arrays of a site."""
        hashes = pd.util.hash_pandas_object(self.table.astype("string").fillna(""), index=False).to_numpy()
        content = hashlib.sha256(hashes.tobytes()).hexdigest()
        how = [content, list(self.table.columns), list(self.features.names), self.standard, list(self.outside)]
        return {site: digest(["tabular", how, site]) for site in self.by_site}

    def arrays(self, site: str) -> dict[str, Array]:
        """`<split>.<field>` of each split: inputs (N, F) float32, labels (N, 1), cases (N,), spacing (N, 0)."""
        here, arrays = self.by_site[site], dict[str, Array]()
        scale = self.pooled if self.standard == "global" else self._own_scale(here)
        for split in SPLITS:
            rows = here[here["split"] == split]
            inputs = np.concatenate([scale(self.features.numbers(rows)), self.features.flags(rows)], axis=1)
            fields: dict[str, Array] = {"inputs": inputs.astype(np.float32), "cases": np.arange(len(rows))}
            fields["spacing"] = np.zeros((len(rows), 0))
            if rows["label"].notna().all():
                fields["labels"] = rows["label"].to_numpy(np.uint8)[:, None]
            arrays |= {f"{split}.{name}": array for name, array in fields.items()}
        return arrays

    @cached_property
    def by_site(self) -> dict[str, pd.DataFrame]:
        """The rows of each site, sorted by site."""
        return {str(site): rows for site, rows in self.table.groupby("site", sort=True)}

    @cached_property
    def pooled(self) -> Scale:
        """The scale of the training rows of all inside sites."""
        return Scale.of(self.features.numbers(self.table[is_training_row(self.table, self.outside)]))

    def _own_scale(self, rows: pd.DataFrame) -> Scale:
        """That of a site's training rows; where they leave it open, as at a site without any, the pooled one."""
        return Scale.of(self.features.numbers(rows[rows["split"].isin(TRAINED)]), self.pooled)


def is_training_row(table: pd.DataFrame, outside: tuple[str, ...]) -> pd.Series:
    """Which rows are trained on: of inside sites, with a label or without."""
    return table["split"].isin(TRAINED) & ~table["site"].isin(outside)


@dataclass(frozen=True)
class TabularSites:
    """Opens sites: from the cache, or from the table where this machine has not prepared them yet."""

    read: Callable[[], TabularRows]
    table: str
    folder: Path
    entries: Mapping[str, str]  # of the cache, by site

    def __call__(self, site: str) -> Data:
        """All that the site has. Raises ConfigError if the table is needed and is not what it was."""
        return data_from_arrays(cached(self.folder, self.entries[site], lambda: self._made(site)))

    def paths(self) -> tuple[list[str], list[str]]:
        """The files that are read, and the folders that are written to."""
        return [self.table], [str(self.folder)]

    def _made(self, site: str) -> dict[str, Array]:
        rows = self.read()
        if rows.entries().get(site) != self.entries[site]:
            raise ConfigError(f"table {self.table} is not what it was when the run was started; start a new one")
        return rows.arrays(site)


def prepare_rows(rows: TabularRows, read: Callable[[], TabularRows], table: str, folder: Path) -> TabularSites:
    """What opens the sites of these rows, their arrays in the cache; `read` gives the rows again, on any machine."""
    entries = rows.entries()
    for site, entry in entries.items():
        cached(folder, entry, partial(rows.arrays, site))
    return TabularSites(read, table, folder, entries)
