"""The round loop: a generator of rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator

from raysim.core.contracts import Algorithm, S, Task
from raysim.core.errors import ConfigError
from raysim.core.network_factories import trained_patterns
from raysim.core.results import ResumePoint, Round, Score
from raysim.core.seeding import seeded
from raysim.federation.accounting import RoundAccounting
from raysim.federation.cohort import apply_dropout, sample_cohort
from raysim.federation.evaluation import SiteEvaluation, evaluate_sites
from raysim.federation.fleet import BaseFleet
from raysim.federation.return_checks import check_round, check_state


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
    """Yields each round when it ends, from the first round (or the round after `start`) to the last.

    `cohort` is a fraction of the inside sites (float) or a number of sites (int). Each sampled site is offline with
    probability `dropout`. All sites are evaluated every `evaluate_every` rounds and after the last round.
    Raises SiteError if client functions fail and too few replies remain.
    """
    check_trainable(algorithm, task)
    if start is None:
        with seeded(seed, "init"):
            start = ResumePoint(0, algorithm.init(task))
        check_state(start.state, f"{type(algorithm).__name__}.init")
    state = start.state
    fleet.client_states.restore(start.client_states)
    for index in range(start.number, rounds):
        began = time.perf_counter()
        fleet.accounting.open_round(index)
        drawn = sample_cohort(task.inside, cohort, seed, index)
        sites = apply_dropout(drawn, dropout, seed, index)
        with seeded(seed, index, "server"):
            state, metrics = check_round(algorithm.round(fleet.at(sites), state), type(algorithm).__name__)
        due = (index + 1) % evaluate_every == 0 or index + 1 == rounds
        evaluation = evaluate_sites(algorithm, state, fleet) if due else SiteEvaluation()
        seconds, phases = time.perf_counter() - began, dict(fleet.accounting.phases)
        yield Round(
            number=index + 1,
            state=state,
            loss=_mean_loss(fleet.accounting),
            metrics=metrics,
            scores=(*_client_scores(fleet.accounting), *evaluation.scores),
            cases=evaluation.cases,
            traffic=fleet.accounting.traffic(),
            seconds=seconds,
            cohort=tuple(sites),
            absent=tuple(site for site in drawn if site not in sites),
            failures=fleet.accounting.take_failures(),
            phases={**phases, "server": seconds - sum(phases.values())},
        )


def check_trainable(algorithm: Algorithm[S], task: Task) -> None:
    """Raises ConfigError if the network of `task` has other trained parameters than the algorithm declares."""
    patterns = getattr(algorithm, "trainable", None)
    if patterns != trained_patterns(task):
        raise ConfigError(
            f"algorithm.trainable={patterns}, but the network of the task has trainable={trained_patterns(task)}; "
            "create the task and the fleet with raysim.train_only(task, algorithm.trainable)"
        )


def _client_scores(accounting: RoundAccounting) -> list[Score]:
    """The metrics in the replies of client functions, as scores on the training data."""
    replies = sorted(accounting.metrics.items())
    return [Score(site, "inside", "train", name, value) for site, found in replies for name, value in found.items()]


def _mean_loss(accounting: RoundAccounting) -> float | None:
    """The weighted mean of the training losses, or None if no reply has a loss."""
    metrics, weights = accounting.metrics, accounting.weights
    total = sum(weights.values())
    return sum(metrics[site]["loss"] * weights[site] for site in sorted(weights)) / total if total > 0 else None
