"""Fleets: what runs client functions at sites. This one runs them in this process, in order."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from raysim.core.contracts import KEEP, Reply, Task
from raysim.core.errors import Interrupted, SiteError
from raysim.core.fault_injection import Chaos
from raysim.core.pytree import frozen, nbytes
from raysim.core.results import Incident
from raysim.core.seeding import kept
from raysim.federation.accounting import Ledger
from raysim.federation.site_executor import NOTHING, Answer, Call, Client, Exchanged, Failure, Opened, Worker

P = TypeVar("P")


class Replies(Mapping[str, Reply[P]]):
    """The replies of the sites that answered, in site order.

    A large payload stays where the fleet keeps it and is read each time it is asked for: any number of them fits.
    """

    def __init__(self, answers: Mapping[str, Answer[P]], fetch: Callable[[Any], P]) -> None:
        self._answers, self._fetch = answers, fetch

    def __getitem__(self, site: str) -> Reply[P]:
        answer = self._answers[site]
        return Reply(self._fetch(answer.payload), answer.weight, answer.metrics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


class BaseFleet(ABC):
    """A fleet, but for how a site is reached: counts bytes, numbers calls, keeps memories, orders replies."""

    def __init__(self, task: Task, *, seed: int, rounds: int) -> None:
        self.task, self.rounds = task, rounds
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

    def map(self, client: Client[P], shared: Any = None, own: Mapping[str, Any] | None = None) -> Replies[P]:
        """`client(site, shared[, own[site]])` at every site; replies in site order, arrays read-only.

        Raises SiteError with site and round for whatever a client function raises, as long as fewer sites than
        `min_replies` would be left.
        """
        answers = self._run(client, shared, own, f"call {self.ledger.calls + 1}", private=False)
        for site, answer in answers.items():
            self.ledger.up[site] += answer.size
        return Replies(answers, self._fetch)

    def exchange(self, client: Client[P], shared: Any = None, own: Mapping[str, Any] | None = None) -> Exchanged[P]:
        """As `map`, but payloads stay out of the server's hands: sites read them from one another."""
        answers = self._run(client, shared, own, "exchange", private=True)
        held = {site: answer.payload for site, answer in answers.items()}
        return Exchanged(held, {site: a.metrics for site, a in answers.items()}, self._fetch)

    def judge(self, client: Client[P], shared: Any) -> Replies[P]:
        """`client` at every site, inside and outside, without a trace in the ledger: judging is not the method."""
        answers = self.at([*self.task.inside, *self.task.outside])._collect(
            client, shared, None, self._call("judge"), phase="judging"
        )
        return Replies(answers, self._fetch)

    def _run(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, phase: str, private: bool
    ) -> dict[str, Answer[P]]:
        ledger, call = self.ledger, self._call(self.ledger.calls)
        ledger.calls += 1
        answers = self._collect(client, shared, own, call, phase=phase, private=private)
        size = nbytes(shared)
        for site in self.sites:  # to those too that have failed since
            ledger.down[site] += size + (nbytes(own[site]) if own is not None else 0)
        for site, answer in answers.items():
            ledger.between[site] += answer.between
            ledger.seconds[site] = answer.seconds
            if answer.memory is not KEEP:
                ledger.memories[site] = answer.memory
            ledger.metrics[site] = ledger.metrics.get(site, {}) | {k: float(v) for k, v in answer.metrics.items()}
            if "loss" in answer.metrics:
                ledger.weights[site] = float(answer.weight)
        return answers

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
        answers, spare = dict[str, Answer[P]](), len(self.sites) - self._needed()
        progress, start = self.ledger.progress, time.perf_counter()
        progress.round, progress.phase, progress.done, progress.total = call.round, phase, 0, len(self.sites)
        for site, answer in self._play(client, shared, own, call, private):
            if answer.failure is not None:
                spare -= 1
                self._left_out(site, answer.failure, answer.seconds, phase, spare)
            else:
                answers[site] = answer
            progress.done += 1
            self.check_stop()
        phases = self.ledger.phases
        phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - start
        return {site: answers[site] for site in self.sites if site in answers}

    def _needed(self) -> int:
        """How many of the sites have to answer: at least one."""
        least, sites = self.ledger.min_replies, len(self.sites)
        return min(sites, max(1, math.ceil(least * sites) if isinstance(least, float) else least))

    def _left_out(self, site: str, failure: Failure, seconds: float, phase: str, spare: int) -> None:
        """Note a site's failure. Raises SiteError if too few sites are left, `spare` being how many may still fail."""
        number, cause = self.ledger.round + 1, failure.cause
        action: Literal["left out", "ended the run"] = "left out" if spare >= 0 else "ended the run"
        self.ledger.incidents.append(Incident(number, phase, (site,), "", cause, action, seconds, failure.traceback))
        if spare < 0:
            if self._needed() < len(self.sites):
                cause += f"; min_replies={self.ledger.min_replies} needs {self._needed()} of {len(self.sites)} sites"
            raise SiteError(site, number, cause, failure.traceback)

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

    def memories(self) -> Mapping[str, Any]:
        """What each site keeps, read one at a time."""
        return _Memories(self)

    @abstractmethod
    def memory(self, site: str) -> Any:
        """What `site` keeps, None if nothing; for checkpoints."""

    @abstractmethod
    def remember(self, memories: Mapping[str, Any]) -> None:
        """Give sites the memories they had at a checkpoint."""


class _Memories(Mapping[str, Any]):
    def __init__(self, fleet: BaseFleet) -> None:
        self._fleet = fleet

    def __getitem__(self, site: str) -> Any:
        return self._fleet.memory(site)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._fleet.ledger.memories))

    def __len__(self) -> int:
        return len(self._fleet.ledger.memories)


class LocalFleet(BaseFleet):
    """All sites in this process, one after the other: for tests, debuggers and small trials."""

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        rounds: int = 1,
        device: str = "cpu",
        threads: int = 1,
        own_threads: Mapping[str, int] | None = None,
        chaos: Chaos | None = None,
        opened: Opened | None = None,
    ) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.worker = Worker(task, seed, device, threads, chaos, own_threads, opened)

    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        frozen((shared, own))
        for site in self.sites:
            given = NOTHING if own is None else own[site]
            memory = self.ledger.memories.get(site)
            with kept():  # the server half of the round draws from the same generators
                answer = self.worker.play(client, site, call, shared, given, memory)
            yield site, answer

    @staticmethod
    def _fetch(held: Any) -> Any:
        return held

    def memory(self, site: str) -> Any:
        return self.ledger.memories.get(site)

    def remember(self, memories: Mapping[str, Any]) -> None:
        self.ledger.memories.update({site: frozen(memory) for site, memory in memories.items()})
