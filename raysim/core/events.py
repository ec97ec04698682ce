"""Events of a run, in the order in which displays and callbacks get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysim.core.errors import RaysimError
from raysim.core.results import FailureAction, Round


@dataclass(frozen=True)
class RoundEvent:
    """A finished round, as displays show it: its row in rounds.parquet."""

    number: int
    values: Mapping[str, Any]
    round: Round[Any] | None = None  # the round itself, in the process that has run it: it does not travel


@dataclass(frozen=True)
class Notice:
    """A message for the user. `action` is set where it reports a failure that no RoundEvent carries."""

    text: str
    action: FailureAction | None = None


@dataclass(frozen=True)
class RunFinished:
    """The end of the run: what summary.json holds."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class ActorsPlaced:
    """The actors are up: where each is, and the site's actor by site."""

    places: Sequence[ActorPlacement]
    site_to_actor: Mapping[str, str]


@dataclass(frozen=True)
class RunFailed:
    """The run failed. It travels as data, so that whoever reads it needs no class but raysim's."""

    error: RaysimError


@dataclass(frozen=True)
class ActorPlacement:
    """Where a client actor is: for placement.json."""

    actor: str
    title: str
    node: str
    pid: int
    cpus: float
    gpus: float
    gpu_ids: list[str]
    device: str
    threads: int


@dataclass
class Progress:
    """Where a round stands; read by displays, from other threads."""

    round: int = 0
    phase: str = "starting"
    done: int = 0
    total: int = 0
    active_sites: tuple[str, ...] = ()  # the sites that calls are under way at


Event = ActorsPlaced | RoundEvent | Notice | RunFinished | RunFailed | Progress
