"""What a fleet keeps beside its sites: the options of a run, the account of the present round, the client states."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysim.core.contracts import Metrics
from raysim.core.pytree import make_readonly
from raysim.core.results import FailureEvent, Traffic


@dataclass(frozen=True)
class FleetOptions:
    """The settings of a run that its calls depend on."""

    seed: int
    rounds: int
    min_replies: float | int = 1.0  # a fraction of the sites of a call, or their number
    site_timeout_s: float = math.inf  # of one site in one call


@dataclass
class RoundAccounting:
    """The account of the present round: calls, traffic, metrics, failures, times. A fleet and its parts share one."""

    round: int = 0  # from 0
    calls: int = 0
    up: Counter[str] = field(default_factory=Counter)  # bytes by site, as in Traffic
    down: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Metrics] = field(default_factory=dict)  # of the client functions, by site
    weights: dict[str, float] = field(default_factory=dict)  # of the sites that report a loss
    failures: list[FailureEvent] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds, by the phase of the calls

    @property
    def number(self) -> int:
        """The number of the round, from 1, as records and messages have it."""
        return self.round + 1

    def open_round(self, index: int) -> None:
        """Start the account of round `index`, from 0."""
        vars(self).update(vars(RoundAccounting(index)))  # in place: the parts of a fleet share this object

    def take_failures(self) -> tuple[FailureEvent, ...]:
        """The failures since the last call of this method: the caller records them, so that each is recorded once."""
        failures, self.failures = tuple(self.failures), []
        return failures

    def traffic(self) -> Traffic:
        """The bytes of the round so far."""
        return Traffic(dict(self.up), dict(self.down), dict(self.between))


class ClientStateStore(Mapping[str, Any]):
    """The client state of each site that has one, loaded on access: those of all sites may not fit into memory.

    `held` has what the fleet keeps for a site: the state itself, or on Ray a reference. `save` and `load` convert
    between the two.
    """

    def __init__(
        self, save: Callable[[Any], Any] = make_readonly, load: Callable[[Any], Any] = lambda held: held
    ) -> None:
        self.held: dict[str, Any] = {}
        self._save, self._load = save, load

    def __getitem__(self, site: str) -> Any:
        return self._load(self.held[site])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.held))

    def __len__(self) -> int:
        return len(self.held)

    def restore(self, client_states: Mapping[str, Any]) -> None:
        """Set the client states of these sites, as at a checkpoint."""
        self.held.update({site: self._save(client_state) for site, client_state in client_states.items()})
