"""Statistics of a comparison: paired tests, Holm's correction, an effect size, bootstrap intervals, DeLong's test.

The scores of a site are those of its cases; the score of a method is the mean over sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from raysim.core.seeding import numpy_generator

Array = np.ndarray[Any, np.dtype[Any]]
PairedTest = Literal["wilcoxon", "permutation"]
RESAMPLES = 5_000  # of the bootstrap
PERMUTATIONS = 9_999
BATCH = 500  # resamples at a time, which bounds the memory
CONFIDENCE = 0.95


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order; no value exceeds 1.

    With p_(1) <= ... <= p_(m), the adjusted value is max_{j<=i} min(1, (m - j + 1) p_(j)). Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def rank_biserial(differences: Array) -> float:
    """The matched-pairs rank-biserial correlation, -1 to 1: the share of the rank sum of |d| with d > 0, minus that
    with d < 0.

    Pairs without a difference are left out; 0 if there are no others. Kerby, "The simple difference formula",
    Comprehensive Psychology 3, 2014.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return 0.0
    ranks = stats.rankdata(np.abs(changed))
    return float((np.sign(changed) * ranks).sum() / ranks.sum())


def paired_p_value(differences: Mapping[str, Array], test: PairedTest) -> float:
    """The two-sided p-value of the differences of all cases, by site; 1 if there is no difference.

    wilcoxon: the signed-rank test of all cases; pairs without a difference are left out. permutation: random signs of
    the differences, with the mean over sites of the mean difference as the statistic; seeded.
    """
    pooled = np.concatenate([*differences.values()])
    if not pooled.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(pooled).pvalue)
    weights = np.concatenate([np.full(len(each), 1 / (len(each) * len(differences))) for each in differences.values()])
    found = stats.permutation_test(
        (pooled * weights,),
        lambda signed, axis: signed.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=BATCH,
        rng=numpy_generator("permutation"),
    )
    return float(found.pvalue)


def mean_interval(values: Mapping[str, Array]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over sites of the mean over cases, from `values` (cases,) by site.

    The cases of each site are drawn with replacement, and the limits are percentiles; seeded.
    """
    found = stats.bootstrap(
        [np.resize(site, max(2, len(site))) for site in values.values()],  # scipy refuses a single case
        lambda *sites, axis: np.mean([site.mean(axis) for site in sites], axis=0),
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        confidence_level=CONFIDENCE,
        vectorized=True,
        rng=numpy_generator("bootstrap"),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Placements:
    """The placement values of the cases of a site, 0 to 1; their mean is the area under the ROC curve.

    positive: (m,), the share of the negative cases with a lower score; negative: (n,), the share of the positive
    cases with a higher score. Equal scores count a half.
    """

    positive: Array
    negative: Array

    @property
    def area(self) -> float:
        """The area under the ROC curve."""
        return float(self.positive.mean())

    @property
    def variance(self) -> float:
        """The variance of the area: S_10 / m + S_01 / n; NaN with a single case of a class."""
        return sum(float(each.var(ddof=1)) / len(each) if len(each) > 1 else np.nan for each in vars(self).values())

    def __sub__(self, other: Placements) -> Placements:
        return Placements(self.positive - other.positive, self.negative - other.negative)


def placements(scores: Array, is_positive: np.ndarray[Any, np.dtype[np.bool_]]) -> Placements:
    """The placement values of cases with `scores` (N,).

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988, Equations 4 and 5; by ranks, as in Sun and Xu, "Fast implementation of
    DeLong's algorithm", IEEE Signal Processing Letters 21, 2014.
    """
    ranks, positive, negative = stats.rankdata(scores), scores[is_positive], scores[~is_positive]
    return Placements(
        (ranks[is_positive] - stats.rankdata(positive)) / len(negative),
        1 - (ranks[~is_positive] - stats.rankdata(negative)) / len(positive),
    )


def mean_placements(each: Sequence[Placements]) -> Placements:
    """The placement values of the same cases, averaged over several models."""
    return Placements(np.mean([one.positive for one in each], axis=0), np.mean([one.negative for one in each], axis=0))


def area_interval(sites: Sequence[Placements]) -> tuple[float, float]:
    """The 95 % interval of the mean over sites of the area, by DeLong's variance; sites are independent."""
    mean, error = _mean_and_error(sites)
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * error
    return float(np.maximum(mean - reach, 0)), float(np.minimum(mean + reach, 1))


def area_p_value(differences: Sequence[Placements]) -> float:
    """The two-sided p-value of DeLong's test; `differences` of each site are those of two models on the same cases."""
    mean, error = _mean_and_error(differences)
    if mean == 0 and error == 0:
        return 1.0
    return float(2 * stats.norm.sf(abs(mean) / error)) if error else 0.0


def _mean_and_error(sites: Sequence[Placements]) -> tuple[float, float]:
    mean = float(np.mean([site.area for site in sites]))
    return mean, float(np.sqrt(sum(site.variance for site in sites)) / len(sites))
