"""The cohort of a round: which sites are sampled, and which of them drop out."""

from __future__ import annotations

from collections.abc import Sequence

from raysim.core.seeding import numpy_generator


def sample_cohort(sites: Sequence[str], cohort: float | int, seed: int, index: int) -> list[str]:
    """The sites of round `index` (from 0): a fraction (float, at least one site) or a number (int) of `sites`."""
    count = cohort_size(cohort, len(sites))
    if count == len(sites):
        return list(sites)
    chosen = numpy_generator(seed, index, "cohort").choice(len(sites), count, replace=False)
    return [sites[i] for i in sorted(chosen)]


def cohort_size(cohort: float | int, sites: int) -> int:
    """The number of sites in a cohort out of `sites`: a fraction (float, at least one site) or a number (int)."""
    return min(sites, max(1, round(cohort * sites)) if isinstance(cohort, float) else cohort)


def apply_dropout(sites: Sequence[str], dropout: float, seed: int, index: int) -> list[str]:
    """The online sites in round `index`. Each site is offline with probability `dropout`; at least one is online."""
    if dropout == 0:
        return list(sites)
    draws = {site: numpy_generator(seed, index, "dropout", site).random() for site in sites}
    return [site for site in sites if draws[site] >= dropout] or [max(sites, key=draws.__getitem__)]
