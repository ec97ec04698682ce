"""Events of a run, in the order in which displays and callbacks receive them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysim.core.errors import RaysimError
from raysim.core.results import FailureAction, Round, Score


@dataclass(frozen=True)
class Message:
    """A line about the progress of the run or the location of its files."""

    text: str


@dataclass(frozen=True)
class Notice:
    """A line that the user should read. `action` is set if it reports a failure that is not in any RoundEvent."""

    text: str
    action: FailureAction | None = None


@dataclass
class Progress:
    """The position within a phase of the run, or of round `round`, from 0. Displays read it from other threads."""

    round: int = 0
    phase: str = "starting"
    done: int = 0
    total: int = 0
    active_sites: tuple[str, ...] = ()  # with a call in progress


@dataclass(frozen=True)
class RunPlanned:
    """The plan is validated: `rounds` rounds, main metric `metric` (role/split/metric), recorded in `directory`."""

    directory: Path
    rounds: int
    metric: str


@dataclass(frozen=True)
class ActorPlacement:
    """The placement of a client actor: its entry in placement.json."""

    actor: str
    title: str
    node: str
    pid: int
    cpus: float
    gpus: float
    gpu_ids: list[str]
    device: str
    threads: int


@dataclass(frozen=True)
class ActorsPlaced:
    """The client actors are up: the placement of each, and the actor of each site."""

    places: Sequence[ActorPlacement]
    site_to_actor: Mapping[str, str]


@dataclass(frozen=True)
class RoundEvent:
    """A finished round: its row in rounds.parquet. `is_last`: the run ends after it."""

    number: int
    values: Mapping[str, Any]
    is_last: bool = field(default=False, kw_only=True)
    scores: Sequence[Score] = ()  # of the sites, for an experiment tracker; empty without a tracker
    round: Round[Any] | None = None  # only in the process that runs the rounds: it is too large to send


@dataclass(frozen=True)
class RunFinished:
    """The end of the run: the content of summary.json."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class RunFailed:
    """The failure of the run. `error` is an error of raysim, so a receiver needs no other classes to read it."""

    error: RaysimError


Event = Message | Notice | Progress | RunPlanned | ActorsPlaced | RoundEvent | RunFinished | RunFailed
EventCallback = Callable[[Event], None]
