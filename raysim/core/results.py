"""What a round gives: traffic, scores, failures; and the point from which a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Literal

from raysim.core.contracts import Metrics, S


@dataclass(frozen=True)
class ResumePoint(Generic[S]):
    """Where a run goes on from: after `number` finished rounds."""

    number: int
    state: S
    client_states: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """Bytes that would cross the network in one round, by site."""

    up: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, int] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)  # received from other sites


@dataclass(frozen=True)
class Score:
    """One number of one site: `metric` on `split`, over `cases` cases."""

    site: str
    role: Literal["inside", "outside"]
    split: str
    metric: str
    value: float
    cases: int = 0


class FailureAction(StrEnum):
    """What the engine did about a failure: the column `action` of failures.jsonl."""

    RETRIED = "retried"  # the calls of a lost actor were made again
    LEFT_OUT = "left out"  # the round goes on without the site's reply, as `min_replies` allows
    RUN_ENDED = "run ended"
    ROLLED_BACK = "rolled back"  # to the last checkpoint
    ACTOR_DROPPED = "actor dropped"  # its node cannot serve the run; its sites moved to other actors


@dataclass(frozen=True)
class FailureEvent:
    """A failure in a round and the action that was taken: a line of failures.jsonl. `round` counts from 1."""

    round: int
    call: str
    sites: tuple[str, ...]
    actor: str  # empty where no actor caused it
    cause: str
    action: FailureAction
    seconds: float = 0.0  # of work that was lost
    remote: str = ""  # the traceback where it happened


@dataclass(frozen=True)
class Round(Generic[S]):
    """One finished round: `number` counts from 1."""

    number: int
    state: S
    loss: float | None  # training loss, weighted mean over the cohort
    metrics: Metrics  # of the server, as the algorithm names them
    scores: tuple[Score, ...]
    traffic: Traffic
    seconds: float
    cohort: tuple[str, ...]
    absent: tuple[str, ...] = ()  # drawn for the round, but not there (cohort.dropout)
    failures: tuple[FailureEvent, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds of each
