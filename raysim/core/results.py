"""Results of a round (traffic, scores, failures) and of a run, and the point from which a run resumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

from raysim.core.contracts import Array, Metrics, S

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ResumePoint(Generic[S]):
    """The point from which a run resumes, after `number` finished rounds."""

    number: int
    state: S
    client_states: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """Bytes that would cross the network in one round, by site."""

    up: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, int] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)  # received from other sites


Role = Literal["inside", "outside"]


def role_of(site: str, inside: Collection[str]) -> Role:
    """The role of a site. `inside` are the inside sites; all other sites are outside."""
    return "inside" if site in inside else "outside"


@dataclass(frozen=True)
class Score:
    """The value of `metric` on `split` at one site, over `cases` cases."""

    site: str
    role: Role
    split: str
    metric: str
    value: float
    cases: int = 0


@dataclass(frozen=True)
class CaseScores:
    """The values of one predictor at each case of a split at one site.

    predictor: `global`, `own` (another network), or the name of the predictor's class.
    cases: (C,) case numbers. metrics: M names, as in Score. values: (M, C), NaN where a case does not define a metric.
    """

    site: str
    split: str
    predictor: str
    cases: Array
    metrics: tuple[str, ...]
    values: Array


class FailureAction(StrEnum):
    """The reaction of the engine to a failure: the column `action` of failures.jsonl."""

    RETRIED = "retried"  # the calls of a lost actor were made again
    LEFT_OUT = "left out"  # the round continues without the site's reply, as `min_replies` allows
    RUN_ENDED = "run ended"
    ROLLED_BACK = "rolled back"  # to the last checkpoint
    ACTOR_DROPPED = "actor dropped"  # its node cannot serve the run; its sites moved to other actors


@dataclass(frozen=True)
class FailureEvent:
    """A failure in a round and the action that was taken: a line of failures.jsonl. `round` counts from 1."""

    round: int
    call: str
    sites: tuple[str, ...]
    actor: str  # empty if no actor caused it
    cause: str
    action: FailureAction
    seconds: float = 0.0  # of work that was lost
    remote: str = ""  # traceback from the process of the failure


@dataclass(frozen=True)
class Round(Generic[S]):
    """One finished round: `number` counts from 1."""

    number: int
    state: S
    loss: float | None  # training loss, weighted mean over the cohort
    metrics: Metrics  # of the server, as the algorithm names them
    scores: tuple[Score, ...]
    cases: tuple[CaseScores, ...]  # those of the scores that are per case
    traffic: Traffic
    seconds: float
    cohort: tuple[str, ...]
    absent: tuple[str, ...] = ()  # sampled for the round, but offline (cohort.dropout)
    failures: tuple[FailureEvent, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds of each


class RunOutcome(StrEnum):
    """The outcome of a run: `status` in summary.json."""

    DONE = "done"  # all rounds are recorded
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run: its directory and the content of its summary.json."""

    path: Path
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def status(self) -> RunOutcome:
        """The outcome of the run."""
        return RunOutcome(self.summary["status"])

    @property
    def digest(self) -> str:
        """SHA-256 of the final state and of all client states; equal for equal runs."""
        return str(self.summary["digest"])

    @property
    def metric(self) -> str:
        """The `role/split/metric` that is reported as the result of the run."""
        return str(self.summary["metric"])

    @property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """The last evaluation by `role/split/metric`: mean, weighted and, for a metric with a direction, worst."""
        found: Mapping[str, Mapping[str, float]] = self.summary["metrics"]
        return found

    @property
    def best(self) -> Mapping[str, Any]:
        """The best round by its validation score: `round`, `metric`, `value`, `metrics` and `sites`.

        `round` is None, with a `reason`, if no round was chosen.
        """
        found: Mapping[str, Any] = self.summary["best"]
        return found

    @property
    def sites(self) -> pd.DataFrame:
        """The last scores of each site: a row per site, columns `role` and `split/metric`; NaN without a score."""
        from pandas import DataFrame  # here, so that events can be read without pandas

        return DataFrame.from_dict(self.summary["sites"], orient="index").rename_axis("site")
