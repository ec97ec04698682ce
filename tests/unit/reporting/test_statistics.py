"""The statistics of a comparison, with numbers worked out by hand or by scipy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from raysim.reporting.statistics import (
    area_interval,
    area_p_value,
    holm,
    mean_interval,
    mean_placements,
    paired_p_value,
    placements,
    rank_biserial,
)

Array = np.ndarray


def arrays(**sites: list[float]) -> Mapping[str, Array]:
    return {site: np.array(values, float) for site, values in sites.items()}


def test_holm() -> None:
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, and the last must not be smaller.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_rank_biserial_correlation() -> None:
    # |d| = 1, 2, 3 have the ranks 1, 2, 3; those of positive differences add up to 4, the negative one to 2.
    assert rank_biserial(np.array([1.0, -2, 3, 0])) == pytest.approx((4 - 2) / 6)
    assert rank_biserial(np.array([0.1, 0.2])) == 1.0
    assert rank_biserial(np.zeros(3)) == 0.0


def test_wilcoxon_and_permutation() -> None:
    six = arrays(a=[1, 2, 3], b=[4, 5, 6])
    # Of the 64 signs, two are as extreme as all positive.
    assert paired_p_value(six, "wilcoxon") == pytest.approx(2 / 64)
    assert paired_p_value(six, "permutation") == pytest.approx(2 / 64)
    assert paired_p_value(arrays(a=[0, 0], b=[0]), "wilcoxon") == 1.0
    some = np.random.default_rng(0).normal(0.1, 1, 40)
    expected = stats.wilcoxon(some).pvalue
    assert paired_p_value({"a": some[:7], "b": some[7:]}, "wilcoxon") == pytest.approx(expected)


def test_a_permutation_test_weighs_sites_equally() -> None:
    # Sums with weights 1/2 for the case of a, 1/4 for those of b: 2 + 0.25 + 0.25 = 2.5; as extreme are only +++, ---.
    assert paired_p_value(arrays(a=[4], b=[1, 1]), "permutation") == pytest.approx(2 / 8)
    # 0.5 + 0.25 - 0.75 = 0: all signs are as extreme.
    assert paired_p_value(arrays(a=[1], b=[1, -3]), "permutation") == 1.0


def test_the_bootstrap_draws_within_sites() -> None:
    # No draw within the sites changes the mean; draws from all cases together would.
    assert mean_interval(arrays(a=[0, 0, 0], b=[1, 1])) == (0.5, 0.5)
    assert mean_interval(arrays(a=[0.3])) == (0.3, 0.3)


def test_the_bootstrap_of_a_large_sample_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = mean_interval({"a": values})
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)
    assert mean_interval({"a": values}) == (low, high)


FIRST = placements(np.array([0.8, 0.6, 0.4, 0.5, 0.3]), np.array([1, 1, 1, 0, 0]) == 1)
SECOND = placements(np.array([0.7, 0.1, 0.6, 0.2, 0.55]), np.array([1, 1, 1, 0, 0]) == 1)


def test_placement_values() -> None:
    assert FIRST.positive.tolist() == [1, 1, 0.5]
    assert FIRST.negative.tolist() == pytest.approx([2 / 3, 1])
    assert FIRST.area == pytest.approx(5 / 6)
    # S_10 = var(1, 1, 1/2) = 1/12, S_01 = var(2/3, 1) = 1/18.
    assert FIRST.variance == pytest.approx(1 / 36 + 1 / 36)
    ties = placements(np.array([0.5, 0.5, 0.5]), np.array([True, False, False]))
    assert (ties.positive.tolist(), ties.negative.tolist()) == ([0.5], [0.5, 0.5])


def test_the_area_is_that_of_the_mann_whitney_statistic() -> None:
    random = np.random.default_rng(2)
    scores, positive = random.integers(0, 9, 50).astype(float), random.random(50) < 0.4
    expected = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert placements(scores, positive).area == pytest.approx(expected)
    assert placements(scores, positive).negative.mean() == pytest.approx(expected)


def test_the_test_of_delong() -> None:
    # Differences: (0, 1, -1/2) with variance 7/12, and (0, 1/3) with 1/18: the variance of the area is 2/9.
    difference = FIRST - SECOND
    assert difference.area == pytest.approx(1 / 6)
    assert difference.variance == pytest.approx(2 / 9)
    z = (1 / 6) / np.sqrt(2 / 9)
    assert area_p_value([difference]) == pytest.approx(2 * stats.norm.sf(z))
    # Two such sites: the same mean, with half of the variance.
    assert area_p_value([difference, difference]) == pytest.approx(2 * stats.norm.sf(z * np.sqrt(2)))
    assert area_p_value([FIRST - FIRST]) == 1.0


def test_the_interval_of_an_area() -> None:
    low, high = area_interval([FIRST])
    assert low == pytest.approx(5 / 6 - stats.norm.ppf(0.975) * np.sqrt(1 / 18))
    assert high == 1.0


def test_placements_are_averaged_over_models() -> None:
    both = mean_placements([FIRST, SECOND])
    assert both.area == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert both.positive.tolist() == pytest.approx([1, 0.5, 0.75])
