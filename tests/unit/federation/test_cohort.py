"""The cohort of a round: sampled sites, and the sites that drop out."""

from __future__ import annotations

from raysim.federation.cohort import apply_dropout, sample_cohort

SITES = [f"site-{number:04}" for number in range(1000)]


def test_each_site_is_offline_with_the_probability_dropout() -> None:
    online = apply_dropout(SITES, 0.1, seed=0, index=3)
    assert 870 <= len(online) <= 930  # 900 expected, standard deviation 9.5
    assert online == apply_dropout(SITES, 0.1, seed=0, index=3)
    assert online != apply_dropout(SITES, 0.1, seed=0, index=4)
    assert apply_dropout(SITES, 0.0, seed=0, index=3) == SITES


def test_one_site_stays_online() -> None:
    assert len(apply_dropout(SITES[:3], 0.999999, seed=0, index=0)) == 1


def test_a_cohort_has_its_size_and_is_in_site_order() -> None:
    cohort = sample_cohort(SITES, 0.25, seed=0, index=0)
    assert (len(cohort), cohort) == (250, sorted(cohort))
    assert len(sample_cohort(SITES, 7, seed=0, index=0)) == 7
