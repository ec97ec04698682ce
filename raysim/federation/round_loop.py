"""The run itself: a generator of rounds, and how sites are drawn and judged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from raysim.core.contracts import Algorithm, S, Task
from raysim.core.results import ResumePoint, Round, Score
from raysim.core.seeding import numpy_generator, seeded
from raysim.federation.accounting import Ledger
from raysim.federation.evaluation import evaluate_sites
from raysim.federation.fleet import BaseFleet


def federate(
    algorithm: Algorithm[S],
    task: Task,
    fleet: BaseFleet,
    *,
    rounds: int,
    cohort: float | int = 1.0,
    dropout: float = 0.0,
    seed: int = 0,
    evaluate_every: int = 1,
    start: ResumePoint[S] | None = None,
) -> Iterator[Round[S]]:
    """Each round as it ends, from the first to the last; stop by not asking for more.

    `cohort` is a fraction of the inside sites if a float, a number of sites if an int; each of them is not there with
    the chance `dropout`. Sites are judged every `evaluate_every` rounds and after the last. Raises SiteError where a
    client function fails.
    """
    if start is None:
        with seeded(seed, "init"):
            start = ResumePoint(0, algorithm.init(task))
    state = start.state
    fleet.restore_client_states(start.client_states)
    for index in range(start.number, rounds):
        began = time.perf_counter()
        fleet.ledger.open_round(index)
        drawn = sample_cohort(task.inside, cohort, seed, index)
        sites = apply_dropout(drawn, dropout, seed, index)
        with seeded(seed, index, "server"):
            state, metrics = algorithm.round(fleet.at(sites), state)
        due = (index + 1) % evaluate_every == 0 or index + 1 == rounds
        scores = evaluate_sites(algorithm, state, fleet) if due else ()
        seconds, phases = time.perf_counter() - began, dict(fleet.ledger.phases)
        yield Round(
            number=index + 1,
            state=state,
            loss=_mean_loss(fleet.ledger),
            metrics=metrics,
            scores=(*_client_scores(fleet.ledger), *scores),
            traffic=fleet.ledger.traffic(),
            seconds=seconds,
            cohort=tuple(sites),
            absent=tuple(site for site in drawn if site not in sites),
            failures=fleet.ledger.take_failures(),
            phases={**phases, "server": seconds - sum(phases.values())},
        )


def sample_cohort(sites: Sequence[str], cohort: float | int, seed: int, index: int) -> list[str]:
    """The sites of round `index` (from 0): a fraction (float, at least one site) or a number (int) of `sites`."""
    count = cohort_size(cohort, len(sites))
    if count == len(sites):
        return list(sites)
    chosen = numpy_generator(seed, index, "cohort").choice(len(sites), count, replace=False)
    return [sites[i] for i in sorted(chosen)]


def cohort_size(cohort: float | int, sites: int) -> int:
    """How many of so many sites a round asks: a fraction (float, at least one site) or a number (int) of them."""
    return min(sites, max(1, round(cohort * sites)) if isinstance(cohort, float) else cohort)


def apply_dropout(sites: Sequence[str], dropout: float, seed: int, index: int) -> list[str]:
    """Those of `sites` that are there in round `index`: each is not with the chance `dropout`; one always is."""
    if dropout == 0:
        return list(sites)
    chance = {site: numpy_generator(seed, index, "dropout", site).random() for site in sites}
    return [site for site in sites if chance[site] >= dropout] or [max(sites, key=chance.__getitem__)]


def _client_scores(ledger: Ledger) -> list[Score]:
    """The metrics that client functions gave in their replies, as scores on the training data."""
    said = sorted(ledger.metrics.items())
    return [Score(site, "inside", "train", name, value) for site, found in said for name, value in found.items()]


def _mean_loss(ledger: Ledger) -> float | None:
    total = sum(ledger.weights.values())
    if not total > 0:
        return None
    return sum(ledger.metrics[site]["loss"] * ledger.weights[site] for site in sorted(ledger.weights)) / total
