"""Fleets: what runs client functions at sites. This one runs them in this process, in order."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raysim.errors import RunError, SiteError
from raysim.tree import frozen, nbytes
from raysim.types import KEEP, Metrics, Reply, Task, Traffic
from raysim.worker import NOTHING, Answer, Call, Client, Exchanged, Worker

P = TypeVar("P")


class Interrupted(RunError):
    """Someone asked the run to stop."""


@dataclass
class Progress:
    """Where a round stands; read by displays, from other threads."""

    round: int = 0
    phase: str = "starting"
    done: int = 0
    total: int = 0


@dataclass
class Ledger:
    """What a fleet and all its parts (`at`) keep together over a run: memories, and the present round's traffic."""

    seed: int
    rounds: int
    memories: dict[str, Any] = field(default_factory=dict)
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

    def open_round(self, index: int) -> None:
        self.round, self.calls, self.metrics, self.weights = index, 0, {}, {}
        self.up, self.down, self.between = Counter(), Counter(), Counter()

    def traffic(self) -> Traffic:
        return Traffic(dict(self.up), dict(self.down), dict(self.between))


class BaseFleet(ABC):
    """A fleet, but for how a site is reached: counts bytes, numbers calls, keeps memories, orders replies."""

    def __init__(self, task: Task, *, seed: int, rounds: int) -> None:
        self.task = task
        self.sites: Sequence[str] = task.inside
        self.ledger = Ledger(seed, rounds)

    def at(self, sites: Sequence[str]) -> BaseFleet:
        """The same fleet, the same ledger, with only these sites, in order of name."""
        unknown = sorted(set(sites) - {*self.task.inside, *self.task.outside})
        if unknown:
            raise ValueError(f"no such site: {unknown[0]!r}")
        part = copy.copy(self)
        part.sites = tuple(sorted(set(sites)))
        return part

    def map(self, client: Client[P], shared: Any = None, own: Mapping[str, Any] | None = None) -> dict[str, Reply[P]]:
        """`client(site, shared[, own[site]])` at every site; replies in site order, arrays read-only.

        Raises SiteError with site and round for whatever a client function raises.
        """
        replies = self._run(client, shared, own, f"call {self.ledger.calls + 1}", private=False)
        for site, reply in replies.items():
            self.ledger.up[site] += nbytes(reply.payload)
        return replies

    def exchange(self, client: Client[P], shared: Any = None) -> Exchanged[P]:
        """As `map`, but payloads stay out of the server's hands: sites read them from one another."""
        replies = self._run(client, shared, None, "exchange", private=True)
        held = {site: reply.payload for site, reply in replies.items()}
        return Exchanged(held, {site: r.metrics for site, r in replies.items()}, self._fetch)

    def judge(self, client: Client[P], shared: Any) -> dict[str, Reply[P]]:
        """`client` at every site, inside and outside, without a trace in the ledger: judging is not the method."""
        answers = self.at([*self.task.inside, *self.task.outside])._collect(
            client, shared, None, self._call("judge"), phase="judging"
        )
        return {site: Reply(a.payload, a.weight, a.metrics) for site, a in answers.items()}

    def _run(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, phase: str, private: bool
    ) -> dict[str, Reply[P]]:
        ledger, call = self.ledger, self._call(self.ledger.calls)
        ledger.calls += 1
        answers = self._collect(client, shared, own, call, phase=phase, private=private)
        size = nbytes(shared)
        for site, answer in answers.items():
            ledger.down[site] += size + (nbytes(own[site]) if own is not None else 0)
            ledger.between[site] += answer.between
            ledger.seconds[site] = answer.seconds
            if answer.memory is not KEEP:
                ledger.memories[site] = answer.memory
            ledger.metrics[site] = ledger.metrics.get(site, {}) | {k: float(v) for k, v in answer.metrics.items()}
            if "loss" in answer.metrics:
                ledger.weights[site] = float(answer.weight)
        return {site: Reply(a.payload, a.weight, a.metrics) for site, a in answers.items()}

    def _call(self, index: int | str) -> Call:
        return Call(self.ledger.seed, self.ledger.round, self.ledger.rounds, index)

    def _collect(
        self,
        client: Client[P],
        shared: Any,
        own: Mapping[str, Any] | None,
        call: Call,
        *,
        phase: str,
        private: bool = False,
    ) -> dict[str, Answer[P]]:
        answers: dict[str, Answer[P]] = {}
        progress = self.ledger.progress
        progress.round, progress.phase, progress.done, progress.total = call.round, phase, 0, len(self.sites)
        for site, answer in self._play(client, shared, own, call, private):
            if answer.failure is not None:
                raise SiteError(site, call.round + 1, answer.failure.cause, answer.failure.traceback)
            answers[site] = answer
            progress.done += 1
            self.check_stop()
        return {site: answers[site] for site in self.sites}

    def check_stop(self) -> None:
        """Raises Interrupted if someone asked the run to stop."""
        if self.ledger.stop.is_set():
            raise Interrupted(f"stopped in round {self.ledger.round + 1}")

    @abstractmethod
    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        """Each site with its answer, in any order. `private`: payloads are handles that `_fetch` resolves."""

    @staticmethod
    @abstractmethod
    def _fetch(held: Any) -> Any:
        """The payload that a private handle stands for, at a site."""

    @abstractmethod
    def memory(self, site: str) -> Any:
        """What `site` keeps, None if nothing; for checkpoints."""

    @abstractmethod
    def remember(self, memories: Mapping[str, Any]) -> None:
        """Give sites the memories they had at a checkpoint."""


class LocalFleet(BaseFleet):
    """All sites in this process, one after the other: for tests, debuggers and small trials."""

    def __init__(self, task: Task, *, seed: int = 0, rounds: int = 1, device: str = "cpu", threads: int = 1) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.worker = Worker(task, seed, device, threads)

    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        frozen((shared, own))
        for site in self.sites:
            given = NOTHING if own is None else own[site]
            memory = self.ledger.memories.get(site)
            yield site, self.worker.play(client, site, call, shared, given, memory)

    @staticmethod
    def _fetch(held: Any) -> Any:
        return held

    def memory(self, site: str) -> Any:
        return self.ledger.memories.get(site)

    def remember(self, memories: Mapping[str, Any]) -> None:
        self.ledger.memories.update(frozen(memories))
