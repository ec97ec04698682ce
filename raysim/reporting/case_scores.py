"""The scores of a group of runs from cases.parquet: means of a metric, or areas under the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from raysim.reporting.statistics import (
    Array,
    PairedTest,
    Placements,
    area_interval,
    area_p_value,
    mean_interval,
    mean_placements,
    paired_p_value,
    placements,
    rank_biserial,
)

DECIMALS = 12  # kept in a difference


@dataclass(frozen=True)
class PairedResult:
    """The comparison with the reference: p-value before the correction, effect size, pairs that were left out."""

    p_value: float
    effect: float | None = None
    left_out: int = 0


class GroupScores(Protocol):
    """The scores of the repetitions of a group on the same cases."""

    @property
    def sites(self) -> pd.DataFrame:
        """The score of each repetition (row) at each site with a value (column)."""

    @property
    def cases(self) -> int:
        """The number of cases."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean over sites, for the choice of cases within each site."""

    def paired(self, reference: GroupScores, test: PairedTest) -> PairedResult:
        """The test against the reference, which has the same cases."""


@dataclass(frozen=True)
class MeanScores:
    """A metric that is a mean over cases. values: a row by (site, case), a column for each repetition."""

    values: pd.DataFrame

    @cached_property
    def sites(self) -> pd.DataFrame:
        return self.values.groupby(level="site").mean().dropna(how="all").T

    @property
    def cases(self) -> int:
        return len(self.values)

    @cached_property
    def by_case(self) -> pd.Series[float]:
        """The mean over the repetitions for each case; without cases that have no value in any repetition."""
        return self.values.mean(axis=1).dropna()

    @property
    def interval(self) -> tuple[float, float]:
        return mean_interval(_by_site(self.by_case))

    def paired(self, reference: GroupScores, test: PairedTest) -> PairedResult:
        assert isinstance(reference, MeanScores)
        # Rounded, because the means of equal values may differ in their last digit.
        differences = (self.by_case - reference.by_case).dropna().round(DECIMALS)
        p_value = paired_p_value(_by_site(differences), test) if len(differences) else np.nan
        left_out = len(self.by_case.index.union(reference.by_case.index)) - len(differences)
        return PairedResult(p_value, rank_biserial(differences.to_numpy()), left_out)


def _by_site(values: pd.Series[float]) -> Mapping[str, Array]:
    return {str(site): of_site.to_numpy() for site, of_site in values.groupby(level="site")}


@dataclass(frozen=True)
class AreaScores:
    """The area under the ROC curve of two classes, or of a label, at the sites with cases of both values.

    labels: 0 or 1 by (site, case). odds: the log odds of the value 1, with a column for each repetition.
    """

    labels: pd.Series[float]
    odds: pd.DataFrame

    @cached_property
    def _placements(self) -> Mapping[str, Sequence[Placements]]:
        """The placement values of each repetition, by site."""
        found = {}
        for site, labels in self.labels.groupby(level="site"):
            is_positive, odds = labels.to_numpy() == 1, self.odds.loc[labels.index].to_numpy()
            if 0 < is_positive.sum() < len(labels):
                found[str(site)] = [placements(column, is_positive) for column in odds.T]
        return found

    @cached_property
    def sites(self) -> pd.DataFrame:
        areas = {site: [one.area for one in each] for site, each in self._placements.items()}
        return pd.DataFrame(areas, index=self.odds.columns)

    @property
    def cases(self) -> int:
        return len(self.labels)

    @cached_property
    def means(self) -> list[Placements]:
        """The placement values of each site, averaged over the repetitions."""
        return [mean_placements(each) for each in self._placements.values()]

    @property
    def interval(self) -> tuple[float, float]:
        return area_interval(self.means)

    def paired(self, reference: GroupScores, test: PairedTest) -> PairedResult:
        """DeLong's test, for any `test`."""
        assert isinstance(reference, AreaScores)
        return PairedResult(area_p_value([one - other for one, other in zip(self.means, reference.means, strict=True)]))
