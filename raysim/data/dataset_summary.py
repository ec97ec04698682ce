"""A description of data as tidy frames, and how it is shown in a terminal."""

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
from raysim.data.console_tables import ALL, case_table, feature_table, image_table, intensity_table, label_table
from raysim.data.table import SPLITS

MOST = 40  # sites shown one by one
PROBLEMS = 20  # problems shown; the description has all
Kind = Literal["segmentation", "classification", "tabular", "unlabelled"]


@dataclass(frozen=True)
class DatasetSummary:
    """What a table holds.

    cases      site, split, image, label, and of each image shape, spacing in mm, channels and the intensities low,
               p1, mean, p99, high (p1 and p99 are the 1st and 99th percentile); NA where there is none
    labels     site, value, count: the pixels of each value, or the cases of each class
    features   site, feature, rows, missing, mean: the columns of numbers of a table without images
    problems   what is missing, unreadable or does not fit, a line each
    """

    kind: Kind
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
        """The extremes of each site's (row) images along each axis; p1, mean and p99 are means over images."""
        seen = self.cases.dropna(subset="channels") if "channels" in self.cases else self.cases[:0]
        rows = {site: _extremes(part) for site, part in seen.groupby("site", sort=False)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site")

    @property
    def values(self) -> pd.DataFrame:
        """The labelled pixels, or cases, of each site (row) that have each label value (column)."""
        sums = self.labels.groupby(["site", "value"], sort=False)["count"].sum().unstack(fill_value=0)
        return sums.reindex(self.labels["site"].unique())[sorted(sums.columns)].rename_axis(columns=None)

    @property
    def prevalence(self) -> pd.DataFrame:
        """The part, 0 to 1, that each label value (column) has of each site's (row) labelled pixels or cases."""
        return self.values.div(self.values.sum(axis=1), axis=0)

    def print(self, console: Console) -> None:
        """Tables of at most MOST sites, with a row for the others and one for all, and the first problems."""
        sites = self.cases["site"].nunique()
        console.print(Text(f"cases: {len(self.cases)}, sites: {sites}, {self.kind}"))
        parts = [_shortened(self), _renamed(self, lambda site: ALL)] if sites > 1 else [self]
        for title, table in _tables(self, parts):
            console.print(Text(f"\n{title}", style="bold"))
            console.print(table)
        console.print()
        for problem in self.problems[:PROBLEMS]:
            console.print(Text(f"! {problem}", style="yellow"))
        more = len(self.problems) - PROBLEMS
        if more > 0 or not self.problems:
            console.print(Text(f"! and {pluralize(more, 'more problem')}" if self.problems else "no problems found"))


def _tables(whole: DatasetSummary, parts: list[DatasetSummary]) -> Iterator[tuple[str, Table]]:
    yield "Cases", case_table(pd.concat([part.counts for part in parts]))
    images = pd.concat([part.images for part in parts])
    if len(images):
        yield "Images", image_table(images)
        yield "Intensity (percentiles and mean: averages over images)", intensity_table(images)
    if len(whole.labels) and whole.kind == "segmentation":
        yield "Labels, share of pixels", label_table(pd.concat([part.prevalence for part in parts]), ".2%")
    elif len(whole.labels):
        yield "Labels, cases", label_table(pd.concat([part.values for part in parts]), "d")
    if len(whole.features):
        yield "Features, mean (and part that is missing)", feature_table(whole.features)


def _shortened(description: DatasetSummary) -> DatasetSummary:
    """The same with the sites beyond the first MOST as one."""
    sites = description.cases["site"].unique().tolist()
    names = {site: f"{len(sites) - MOST} more" for site in sites[MOST:]}
    return _renamed(description, lambda site: names.get(site, site))


def _renamed(description: DatasetSummary, name: Callable[[str], str]) -> DatasetSummary:
    cases = description.cases.assign(site=description.cases["site"].map(name))
    return replace(
        description, cases=cases, labels=description.labels.assign(site=description.labels["site"].map(name))
    )


def _extremes(images: pd.DataFrame) -> dict[str, Any]:
    spacing = images["spacing"].dropna()
    return {
        "images": len(images),
        "shape_min": _along(min, images["shape"]),
        "shape_max": _along(max, images["shape"]),
        "spacing_min": _along(min, spacing),
        "spacing_max": _along(max, spacing),
        "channels": tuple(sorted(set(images["channels"].astype(int)))),
        "low": images["low"].min(),
        **{name: images[name].mean() for name in ("p1", "mean", "p99")},
        "high": images["high"].max(),
    }


def _along(extreme: Callable[..., float], tuples: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The extreme of each axis; a flat image among volumes counts as one slice."""
    return tuple(extreme(axis) for axis in zip_longest(*tuples, fillvalue=1))
