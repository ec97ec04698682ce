"""The run itself: a generator of rounds, and how sites are drawn and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from raysim.fleet import BaseFleet, Ledger
from raysim.model import weights
from raysim.seeding import generator, seeded
from raysim.types import (
    JUDGED,
    Algorithm,
    Answers,
    Metrics,
    Predictor,
    Reply,
    Round,
    Score,
    Site,
    Split,
    State,
    Task,
)

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Start(Generic[S]):
    """Where a run goes on from: after `number` finished rounds."""

    number: int
    state: S
    memories: Mapping[str, Any] = field(default_factory=dict)


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
    start: Start[S] | None = None,
) -> Iterator[Round[S]]:
    """Each round as it ends, from the first to the last; stop by not asking for more.

    `cohort` is a fraction of the inside sites if a float, a number of sites if an int; each of them is not there with
    the chance `dropout`. Sites are judged every `evaluate_every` rounds and after the last. Raises SiteError where a
    client function fails.
    """
    if start is None:
        with seeded(seed, "init"):
            start = Start(0, algorithm.init(task))
    state = start.state
    fleet.remember(start.memories)
    for index in range(start.number, rounds):
        began = time.perf_counter()
        fleet.ledger.open_round(index)
        drawn = draw(task.inside, cohort, seed, index)
        sites = present(drawn, dropout, seed, index)
        with seeded(seed, index, "server"):
            state, metrics = algorithm.round(fleet.at(sites), state)
        due = (index + 1) % evaluate_every == 0 or index + 1 == rounds
        scores = judge(algorithm, state, fleet) if due else ()
        seconds, phases = time.perf_counter() - began, dict(fleet.ledger.phases)
        yield Round(
            number=index + 1,
            state=state,
            loss=_mean_loss(fleet.ledger),
            metrics=metrics,
            scores=(*_said(fleet.ledger), *scores),
            traffic=fleet.ledger.traffic(),
            seconds=seconds,
            cohort=tuple(sites),
            absent=tuple(site for site in drawn if site not in sites),
            incidents=fleet.ledger.told(),
            phases={**phases, "server": seconds - sum(phases.values())},
        )


def draw(sites: Sequence[str], cohort: float | int, seed: int, index: int) -> list[str]:
    """The sites of round `index` (from 0): a fraction (float, at least one site) or a number (int) of `sites`."""
    count = cohort_size(cohort, len(sites))
    if count == len(sites):
        return list(sites)
    chosen = generator(seed, index, "cohort").choice(len(sites), count, replace=False)
    return [sites[i] for i in sorted(chosen)]


def cohort_size(cohort: float | int, sites: int) -> int:
    """How many of so many sites a round asks: a fraction (float, at least one site) or a number (int) of them."""
    return min(sites, max(1, round(cohort * sites)) if isinstance(cohort, float) else cohort)


def present(sites: Sequence[str], dropout: float, seed: int, index: int) -> list[str]:
    """Those of `sites` that are there in round `index`: each is not with the chance `dropout`; one always is."""
    if dropout == 0:
        return list(sites)
    chance = {site: generator(seed, index, "dropout", site).random() for site in sites}
    return [site for site in sites if chance[site] >= dropout] or [max(sites, key=chance.__getitem__)]


def judge(algorithm: Algorithm[S], state: S, fleet: BaseFleet) -> tuple[Score, ...]:
    """The scores of every site, inside and outside: what the method gives it, and `@global` the plain global model."""
    replies = fleet.judge(_judge_site, (algorithm, state))
    return tuple(score for reply in replies.values() for score in reply.payload)


def _judge_site(site: Site[Any], shared: tuple[Algorithm[S], S]) -> Reply[tuple[Score, ...]]:
    algorithm, state = shared
    said = algorithm.predictor(site, state)
    answers = said if isinstance(said, Answers) else None if said is None else Answers(said)
    scores = [] if answers is None else _scores(site, answers.main, "")
    if state.model is not None:
        if answers is not None and _is_global(answers.main, site, state):
            scores += [replace(score, metric=f"{score.metric}@global") for score in scores]
        else:
            scores += _scores(site, site.answer(state.model), "@global")
    if answers is not None:
        for name, predict in answers.others.items():
            scores += _scores(site, predict, f"@{name}")
        if answers.notes is not None:
            scores += _noted(site, answers.notes)
    return Reply(tuple(scores))


def _is_global(predict: Predictor, site: Site[Any], state: State) -> bool:
    """Whether the method's answer is the global model itself, which then need not be judged twice.

    The same weights are another answer where a layer is in another mode, as with the statistics of the batch.
    """
    if not isinstance(predict, nn.Module) or state.model is None:
        return False
    plain = site.answer(state.model)
    modes, of_plain = ([layer.training for layer in net.modules()] for net in (predict, plain))
    return modes == of_plain and weights(predict) == weights(plain)


@torch.no_grad()
def _scores(site: Site[Any], predict: Predictor, suffix: str) -> list[Score]:
    judged = {split: site.task.score(predict, site.data[split], site.device) for split in _judged(site)}
    return _as_scores(site, {split: {f"{n}{suffix}": v for n, v in of.items()} for split, of in judged.items()})


@torch.no_grad()
def _noted(site: Site[Any], notes: Callable[[Split], Metrics]) -> list[Score]:
    return _as_scores(site, {split: notes(site.data[split]) for split in _judged(site)})


def _judged(site: Site[Any]) -> list[str]:
    return [split for split in JUDGED if len(site.data[split])]


def _as_scores(site: Site[Any], found: Mapping[str, Metrics]) -> list[Score]:
    role: Literal["inside", "outside"] = "inside" if site.name in site.task.inside else "outside"
    cases = {split: len(set(site.data[split].cases.tolist())) for split in found}
    return [
        Score(site.name, role, split, metric, float(value), cases[split])
        for split, metrics in found.items()
        for metric, value in metrics.items()
    ]


def _said(ledger: Ledger) -> list[Score]:
    """The metrics that client functions gave in their replies, as scores on the training data."""
    said = sorted(ledger.metrics.items())
    return [Score(site, "inside", "train", name, value) for site, found in said for name, value in found.items()]


def _mean_loss(ledger: Ledger) -> float | None:
    total = sum(ledger.weights.values())
    if not total > 0:
        return None
    return sum(ledger.metrics[site]["loss"] * ledger.weights[site] for site in sorted(ledger.weights)) / total
