"""The data of a fleet: options of the run, accounting of the current round, client states."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysim.core.contracts import Metrics
from raysim.core.pytree import make_readonly
from raysim.core.results import FailureEvent, Traffic


@dataclass(frozen=True)
class FleetOptions:
    """The options of a run that affect its calls."""

    seed: int
    rounds: int
    min_replies: float | int = 1.0  # a fraction (float) or a number (int) of the sites of a call
    site_timeout_s: float = math.inf  # limit for one call at one site
    batch_sites: int = 1  # number of sites in a group, which train in one batch
    single_sites: Collection[str] = ()  # sites that train alone


@dataclass
class RoundAccounting:
    """Calls, traffic, metrics, failures and times of the current round. A fleet and its parts share one object."""

    round: int = 0  # zero-based
    calls: int = 0
    up: Counter[str] = field(default_factory=Counter)  # bytes by site, as in Traffic
    down: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Metrics] = field(default_factory=dict)  # from the replies, by site
    weights: dict[str, float] = field(default_factory=dict)  # of the replies with a loss, by site
    failures: list[FailureEvent] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds by phase

    @property
    def number(self) -> int:
        """The one-based number of the round, as used in records and messages."""
        return self.round + 1

    def open_round(self, index: int) -> None:
        """Start the accounting of round `index` (zero-based)."""
        vars(self).update(vars(RoundAccounting(index)))  # in place: the parts of a fleet share this object

    def take_failures(self) -> tuple[FailureEvent, ...]:
        """The failures since the last call of this method. The caller records them, so each is recorded once."""
        failures, self.failures = tuple(self.failures), []
        return failures

    def traffic(self) -> Traffic:
        """The bytes of the round so far."""
        return Traffic(dict(self.up), dict(self.down), dict(self.between))


class ClientStateStore(Mapping[str, Any]):
    """Client states by site. Each is loaded on access, because the states of all sites may not fit into memory.

    `held` maps a site to its client state or, on Ray, to a reference to it. `save` converts a client state to the held
    value, and `load` converts it back.
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
        """Set the client states of these sites, for example from a checkpoint."""
        self.held.update({site: self._save(client_state) for site, client_state in client_states.items()})
