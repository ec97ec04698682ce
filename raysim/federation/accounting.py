"""What a fleet counts and keeps over a run: client states, bytes, seconds, failures."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raysim.core.contracts import Metrics
from raysim.core.events import Progress
from raysim.core.results import FailureEvent, Traffic


@dataclass
class Ledger:
    """What a fleet and all its parts (`at`) keep together over a run: memories, and the present round's traffic."""

    seed: int
    rounds: int
    min_replies: float | int = 1.0  # a fraction of the sites of a call, or a number of them
    site_timeout_s: float = math.inf  # seconds that a site may take for a call
    client_states: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    stop: threading.Event = field(default_factory=threading.Event)
    round: int = 0
    calls: int = 0
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Metrics] = field(default_factory=dict)  # of the client functions, by site
    weights: dict[str, float] = field(default_factory=dict)
    failures: list[FailureEvent] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds of the present round, by the phase of its calls

    def open_round(self, index: int) -> None:
        self.round, self.calls, self.metrics, self.weights, self.failures = index, 0, {}, {}, []
        self.up, self.down, self.between, self.phases = Counter(), Counter(), Counter(), {}

    def take_failures(self) -> tuple[FailureEvent, ...]:
        """What has gone wrong since this was last asked: whoever asks writes it down, so that none is written twice."""
        incidents, self.failures = tuple(self.failures), []
        return incidents

    def traffic(self) -> Traffic:
        return Traffic(dict(self.up), dict(self.down), dict(self.between))
