"""The data of tabular sites: arrays computed from the table for each site, and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from raysim.core.contracts import SPLITS, CaseName, Data
from raysim.core.errors import ConfigError
from raysim.data.cache import cache_key, load_or_create
from raysim.data.patient_columns import patients_of
from raysim.data.site_arrays import data_from_arrays
from raysim.data.tabular_features import Features, Standardizer

Array = np.ndarray[Any, np.dtype[Any]]
TRAINING_SPLITS = ("train", "unlabelled")  # standardisation uses no labels, so unlabelled rows count too
StandardisationScope = Literal["per_site", "global"]


@dataclass(frozen=True)
class TabularDataset:
    """A table with class indices as `label`, and the features of its rows. Computes the arrays of each site.

    `reference` is another dataset whose training rows standardise the features, instead of those of this table.
    """

    table: pd.DataFrame
    features: Features
    standardise: StandardisationScope
    outside: tuple[str, ...]
    reference: TabularDataset | None = None

    def split_sizes(self) -> dict[str, dict[str, int]]:
        """The number of rows of each site in each split, by site."""
        return {site: {s: int((rows["split"] == s).sum()) for s in SPLITS} for site, rows in self.by_site.items()}

    def cache_keys(self) -> dict[str, str]:
        """The cache key of each site; it depends on everything that determines the site's arrays."""
        inputs = [
            *(_content(self.table), list(self.table.columns), list(self.features.names)),
            *(self.standardise, list(self.outside)),
            *([] if self.reference is None else [_content(self.reference.table), list(self.reference.outside)]),
        ]
        return {site: cache_key(["tabular", inputs, site]) for site in self.by_site}

    def arrays(self, site: str) -> dict[str, Array]:
        """`<split>.<field>` of each split: inputs (N, F) float32, labels (N, 1), cases (N,), spacing (N, 0)."""
        site_rows, arrays, standardizer = self.by_site[site], dict[str, Array](), self._standardizer(site)
        for split in SPLITS:
            rows = site_rows[site_rows["split"] == split]
            numeric = standardizer(self.features.numeric_values(rows))
            inputs = np.concatenate([numeric, self.features.binary_values(rows)], axis=1)
            fields: dict[str, Array] = {"inputs": inputs.astype(np.float32), "cases": np.arange(len(rows))}
            fields["spacing"] = np.zeros((len(rows), 0))
            if rows["label"].notna().all():
                fields["labels"] = rows["label"].to_numpy(np.uint8)[:, None]
            arrays |= {f"{split}.{name}": array for name, array in fields.items()}
        return arrays

    def case_names(self) -> dict[tuple[str, str], list[CaseName]]:
        """The rows of each site and split: their image, if the table has the column, and their patient."""
        names: dict[tuple[str, str], list[CaseName]] = {}
        images = self.table["image"] if "image" in self.table else [pd.NA] * len(self.table)
        for site, split, image, patient in zip(
            self.table["site"], self.table["split"], images, patients_of(self.table), strict=True
        ):
            name = CaseName(None if pd.isna(image) else str(image), patient)
            names.setdefault((str(site), str(split)), []).append(name)
        return names

    @cached_property
    def by_site(self) -> dict[str, pd.DataFrame]:
        """The rows of each site, sorted by site."""
        return {str(site): rows for site, rows in self.table.groupby("site", sort=True)}

    @cached_property
    def pooled(self) -> Standardizer:
        """The standardizer of the training rows of all inside sites."""
        return Standardizer.fit(self.features.numeric_values(self.table[is_training_row(self.table, self.outside)]))

    def _standardizer(self, site: str) -> Standardizer:
        """The standardizer of a site's training rows; the pooled one is the fallback for empty and constant columns."""
        fitted = self.reference or self
        rows = fitted.by_site.get(site)
        if self.standardise == "global" or rows is None:
            return fitted.pooled
        training_rows = rows[rows["split"].isin(TRAINING_SPLITS)]
        return Standardizer.fit(self.features.numeric_values(training_rows), fitted.pooled)


def _content(table: pd.DataFrame) -> str:
    """The SHA-256 of the cells of a table."""
    hashes = pd.util.hash_pandas_object(table.astype("string").fillna(""), index=False).to_numpy()
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def is_training_row(table: pd.DataFrame, outside: tuple[str, ...]) -> pd.Series:
    """Whether each row is used for training: rows of inside sites, with a label or without."""
    return table["split"].isin(TRAINING_SPLITS) & ~table["site"].isin(outside)


@dataclass(frozen=True)
class TabularSites:
    """Opens the data of a site: from the cache, or from the table if this node has not prepared it yet."""

    load_dataset: Callable[[], TabularDataset]
    table: str
    cache_folder: Path
    cache_keys: Mapping[str, str]  # by site
    names: Mapping[tuple[str, str], Sequence[CaseName]]  # the cases by site and split

    def __call__(self, site: str) -> Data:
        """The data of the site. Raises ConfigError if the table must be read and has changed."""
        arrays = load_or_create(self.cache_folder, self.cache_keys[site], lambda: self._prepare(site))
        return data_from_arrays(arrays)

    def case_names(self, site: str, split: str) -> Sequence[CaseName]:
        """The cases of a site in a split."""
        return self.names.get((site, split), ())

    def paths(self) -> tuple[list[str], list[str]]:
        """The files that are read, and the folders that are written to."""
        return [self.table], [str(self.cache_folder)]

    def _prepare(self, site: str) -> dict[str, Array]:
        dataset = self.load_dataset()
        if dataset.cache_keys().get(site) != self.cache_keys[site]:
            raise ConfigError(f"table {self.table} has changed since the start of the run; start a new run")
        return dataset.arrays(site)


def prepare_tabular_sites(
    dataset: TabularDataset, load_dataset: Callable[[], TabularDataset], table: str, cache_folder: Path
) -> TabularSites:
    """The opener of the dataset's sites, with the arrays of all sites in the cache.

    `load_dataset` reads the dataset again on a node that does not have it in its cache.
    """
    keys = dataset.cache_keys()
    for site, key in keys.items():
        load_or_create(cache_folder, key, partial(dataset.arrays, site))
    return TabularSites(load_dataset, table, cache_folder, keys, dataset.case_names())
