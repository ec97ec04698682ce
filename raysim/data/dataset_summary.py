"""The summary of a data set as data frames, and its printout in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.core.formatting import pluralize
from raysim.data.summary_tables import ALL_SITES, case_table, feature_table, image_table, intensity_table, label_table
from raysim.data.table import SPLITS

MAX_SITES = 40  # sites with a separate row
MAX_PROBLEMS = 20  # problems printed; `problems` has all
DatasetKind = Literal["segmentation", "classification", "multilabel", "regression", "tabular", "unlabelled"]


@dataclass(frozen=True)
class DatasetSummary:
    """The contents of a table and of the files that it lists.

    cases      site, split, image, label, and for each image: shape, spacing in mm, channels and the intensities low,
               p1, mean, p99, high (p1 and p99 are the 1st and 99th percentile); NA if unknown
    labels     site, value, count: the number of pixels of each mask value, or of cases of each class or label
    features   site, feature, rows, missing, mean: the numeric columns of a table without images, or the target
    problems   one line for each missing, unreadable or inconsistent item
    """

    kind: DatasetKind
    cases: pd.DataFrame
    labels: pd.DataFrame
    features: pd.DataFrame
    problems: tuple[str, ...]

    @property
    def counts(self) -> pd.DataFrame:
        """The number of cases of each site (row) in each split (column), and in `all`."""
        counts = pd.crosstab(self.cases["site"], self.cases["split"]).reindex(columns=list(SPLITS), fill_value=0)
        counts = counts.reindex(self.cases["site"].unique()).rename_axis(index="site", columns=None)
        return counts.assign(all=counts.sum(axis=1))

    @property
    def images(self) -> pd.DataFrame:
        """The ranges of shape and spacing of the images of each site (row); p1, mean and p99 are means over images."""
        readable = self.cases.dropna(subset="channels") if "channels" in self.cases else self.cases[:0]
        rows = {site: _image_ranges(part) for site, part in readable.groupby("site", sort=False)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site")

    @property
    def values(self) -> pd.DataFrame:
        """The number of pixels, or cases, of each site (row) with each label value (column)."""
        sums = self.labels.groupby(["site", "value"], sort=False)["count"].sum().unstack(fill_value=0)
        return sums.reindex(self.labels["site"].unique())[sorted(sums.columns)].rename_axis(columns=None)

    @property
    def prevalence(self) -> pd.DataFrame:
        """The fraction, 0 to 1, of the labelled pixels or cases of each site (row) with each label value (column)."""
        return self.values.div(self.values.sum(axis=1), axis=0)

    def print(self, console: Console) -> None:
        """Print tables of at most MAX_SITES sites, with a row for the others and a row for all; then the problems."""
        sites = self.cases["site"].nunique()
        console.print(Text(f"cases: {len(self.cases)}, sites: {sites}, {self.kind}"))
        parts = [_combine_extra_sites(self), _rename_sites(self, lambda site: ALL_SITES)] if sites > 1 else [self]
        for title, table in _tables(self, parts):
            console.print(Text(f"\n{title}", style="bold"))
            console.print(table)
        console.print()
        for problem in self.problems[:MAX_PROBLEMS]:
            console.print(Text(f"! {problem}", style="yellow"))
        more = len(self.problems) - MAX_PROBLEMS
        if more > 0 or not self.problems:
            console.print(Text(f"! and {pluralize(more, 'more problem')}" if self.problems else "no problems found"))


def _tables(summary: DatasetSummary, parts: list[DatasetSummary]) -> Iterator[tuple[str, Table]]:
    yield "Cases", case_table(pd.concat([part.counts for part in parts]))
    images = pd.concat([part.images for part in parts])
    if len(images):
        yield "Images", image_table(images)
        yield "Intensity (percentiles and mean: averages over images)", intensity_table(images)
    if len(summary.labels) and summary.kind == "segmentation":
        yield "Labels, share of pixels", label_table(pd.concat([part.prevalence for part in parts]), ".2%")
    elif len(summary.labels):
        yield "Labels, cases", label_table(pd.concat([part.values for part in parts]), "d")
    if len(summary.features):
        title = "Features" if summary.kind == "tabular" else "Target"
        yield f"{title}, mean (and fraction of missing cells)", feature_table(summary.features)


def _combine_extra_sites(summary: DatasetSummary) -> DatasetSummary:
    """The summary with the sites beyond the first MAX_SITES combined into one."""
    sites = summary.cases["site"].unique().tolist()
    names = {site: f"{len(sites) - MAX_SITES} more" for site in sites[MAX_SITES:]}
    return _rename_sites(summary, lambda site: names.get(site, site))


def _rename_sites(summary: DatasetSummary, name: Callable[[str], str]) -> DatasetSummary:
    cases = summary.cases.assign(site=summary.cases["site"].map(name))
    return replace(summary, cases=cases, labels=summary.labels.assign(site=summary.labels["site"].map(name)))


def _image_ranges(images: pd.DataFrame) -> dict[str, Any]:
    spacing = images["spacing"].dropna()
    return {
        "images": len(images),
        "shape_min": _per_axis(min, images["shape"]),
        "shape_max": _per_axis(max, images["shape"]),
        "spacing_min": _per_axis(min, spacing),
        "spacing_max": _per_axis(max, spacing),
        "channels": tuple(sorted(set(images["channels"].astype(int)))),
        "low": images["low"].min(),
        **{name: images[name].mean() for name in ("p1", "mean", "p99")},
        "high": images["high"].max(),
    }


def _per_axis(extreme: Callable[..., float], tuples: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The minimum or maximum along each axis; a 2-D image among volumes counts as one slice."""
    return tuple(extreme(axis) for axis in zip_longest(*tuples, fillvalue=1))
