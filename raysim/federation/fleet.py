"""Fleets run client functions at sites. `LocalFleet` runs them in this process, one after the other."""

from __future__ import annotations

import copy
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from raysim.core.contracts import UNCHANGED, Reply, Task
from raysim.core.errors import Interrupted, SiteError
from raysim.core.events import Progress
from raysim.core.fault_injection import FaultPlan
from raysim.core.pytree import make_readonly, nbytes
from raysim.core.results import FailureAction, FailureEvent
from raysim.core.seeding import preserve_rng
from raysim.federation.accounting import ClientStateStore, FleetOptions, RoundAccounting
from raysim.federation.site_data import SiteDataCache
from raysim.federation.site_executor import (
    EVALUATION_CALL,
    NOT_GIVEN,
    CallKey,
    CallResult,
    Client,
    ExchangeHandle,
    Failure,
    SiteArguments,
    SiteExecutor,
)

P = TypeVar("P")
EVALUATION_PHASE = "evaluation"  # of the calls that evaluate sites


class Replies(Mapping[str, Reply[P]]):
    """The replies of the sites that replied, in site order.

    A payload is fetched on each access and is not kept here, so that the payloads need not fit into memory together.
    """

    def __init__(self, results: Mapping[str, CallResult[P]], fetch: Callable[[Any], P]) -> None:
        self._results, self._fetch = results, fetch

    def __getitem__(self, site: str) -> Reply[P]:
        result = self._results[site]
        return Reply(self._fetch(result.payload), result.weight, result.metrics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)


class BaseFleet(ABC):
    """Base class of fleets: counts bytes, numbers calls, keeps client states and orders replies.

    A subclass defines how a call reaches a site. A part of a fleet (`at`) shares all fields except `sites`.
    """

    def __init__(self, task: Task, options: FleetOptions, client_states: ClientStateStore | None = None) -> None:
        self.task, self.options, self.rounds = task, options, options.rounds
        self.sites: Sequence[str] = task.inside
        self.accounting, self.progress = RoundAccounting(), Progress()
        self.client_states = ClientStateStore() if client_states is None else client_states
        self.call_seconds: dict[str, float] = {}  # of the last call at each site
        self.stop_requested = threading.Event()

    def at(self, sites: Sequence[str]) -> BaseFleet:
        """This fleet with only these sites, in order of name; it shares the accounting of this fleet."""
        unknown = sorted(set(sites) - {*self.task.inside, *self.task.outside})
        if unknown:
            raise ValueError(f"no such site: {unknown[0]!r}")
        part = copy.copy(self)
        part.sites = tuple(sorted(set(sites)))
        return part

    def map(self, client: Client[P], broadcast: Any = None, per_site: Mapping[str, Any] | None = None) -> Replies[P]:
        """The replies of `client(site, broadcast[, per_site[site]])` at all sites, in site order; arrays are read-only.

        Sites whose client function raises an exception are left out. Raises SiteError, with site and round, if fewer
        replies than `min_replies` would remain.
        """
        results = self._run(client, broadcast, per_site, f"call {self.accounting.calls + 1}", private=False)
        for site, result in results.items():
            self.accounting.up[site] += result.size
        return Replies(results, self._fetch)

    def exchange(
        self, client: Client[P], broadcast: Any = None, per_site: Mapping[str, Any] | None = None
    ) -> ExchangeHandle[P]:
        """As `map`, but the payloads are not sent to the server: sites read them from each other."""
        results = self._run(client, broadcast, per_site, "exchange", private=True)
        held = {site: result.payload for site, result in results.items()}
        return ExchangeHandle(held, {site: result.metrics for site, result in results.items()}, self._fetch)

    def evaluate(
        self,
        client: Client[P],
        broadcast: Any,
        phase: str = EVALUATION_PHASE,
        sites: Sequence[str] | None = None,
        per_site: Mapping[str, Any] | None = None,
    ) -> Replies[P]:
        """The replies of `client(site, broadcast[, per_site[site]])` at `sites`, by default every site.

        The traffic of an evaluation is not counted, because evaluation is not part of the method.
        """
        results = self.at([*self.task.inside, *self.task.outside] if sites is None else sites)._collect(
            client,
            broadcast,
            per_site,
            self._call(EVALUATION_CALL),
            phase=phase,
        )
        return Replies(results, self._fetch)

    def _run(
        self, client: Client[P], broadcast: Any, per_site: Mapping[str, Any] | None, phase: str, private: bool
    ) -> dict[str, CallResult[P]]:
        accounting, call = self.accounting, self._call(self.accounting.calls)
        accounting.calls += 1
        results = self._collect(client, broadcast, per_site, call, phase=phase, private=private)
        size = nbytes(broadcast)
        for site in self.sites:  # also sites whose call failed
            accounting.down[site] += size + (nbytes(per_site[site]) if per_site is not None else 0)
        for site, result in results.items():
            accounting.between[site] += result.between
            self.call_seconds[site] = result.seconds
            if result.client_state is not UNCHANGED:
                self.client_states.held[site] = result.client_state
            metrics = {name: float(value) for name, value in result.metrics.items()}
            accounting.metrics[site] = accounting.metrics.get(site, {}) | metrics
            if "loss" in metrics:
                accounting.weights[site] = float(result.weight)
        return results

    def groups(self, call: CallKey) -> list[tuple[str, ...]]:
        """The sites of a call in groups, which run and are repeated together.

        A group has sites with similar numbers of training examples. It does not depend on actors or failures, because
        the results of training in one batch differ from those of training alone by rounding.
        """
        size = 1 if call.index == EVALUATION_CALL else self.options.batch_sites
        if size == 1:
            return [(site,) for site in self.sites]
        single = [site for site in self.sites if site in self.options.single_sites]
        others = sorted(set(self.sites) - set(single), key=lambda site: (self.task.sizes[site].get("train", 0), site))
        chunks = [tuple(sorted(others[start : start + size])) for start in range(0, len(others), size)]
        return [*((site,) for site in single), *chunks]

    def _call(self, index: int | str) -> CallKey:
        return CallKey(self.options.seed, self.accounting.round, self.options.rounds, index)

    def _collect(
        self,
        client: Client[P],
        broadcast: Any,
        per_site: Mapping[str, Any] | None,
        call: CallKey,
        *,
        phase: str,
        private: bool = False,
    ) -> dict[str, CallResult[P]]:
        results, spare = dict[str, CallResult[P]](), len(self.sites) - self._needed()
        progress, start = self.progress, time.perf_counter()
        progress.round, progress.phase, progress.done, progress.total = call.round, phase, 0, len(self.sites)
        for site, result in self._run_calls(client, broadcast, per_site, call, private):
            if result.failure is not None:
                spare -= 1
                self._left_out(site, result.failure, result.seconds, phase, spare)
            else:
                results[site] = result
            progress.done += 1
            self.check_stop()
        phases = self.accounting.phases
        phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - start
        return {site: results[site] for site in self.sites if site in results}

    def _needed(self) -> int:
        """The number of replies that a call needs: at least one."""
        least, sites = self.options.min_replies, len(self.sites)
        return min(sites, max(1, math.ceil(least * sites) if isinstance(least, float) else least))

    def _left_out(self, site: str, failure: Failure, seconds: float, phase: str, spare: int) -> None:
        """Record a failed site. Raises SiteError if `spare`, the number of sites that may still fail, is negative."""
        number, cause = self.accounting.number, failure.cause
        action = FailureAction.LEFT_OUT if spare >= 0 else FailureAction.RUN_ENDED
        event = FailureEvent(number, phase, (site,), "", cause, action, seconds, failure.traceback)
        self.accounting.failures.append(event)
        if spare < 0:
            if self._needed() < len(self.sites):
                cause += f"; min_replies={self.options.min_replies} needs {self._needed()} of {len(self.sites)} sites"
            has_no_result = failure.wrong_code and number == 1 and self.accounting.calls == 1
            raise SiteError(site, number, cause, failure.traceback, has_no_result)

    def check_stop(self) -> None:
        """Raises Interrupted if a stop was requested."""
        if self.stop_requested.is_set():
            raise Interrupted(f"stopped in round {self.accounting.number}")

    @abstractmethod
    def _run_calls(
        self, client: Client[P], broadcast: Any, per_site: Mapping[str, Any] | None, call: CallKey, private: bool
    ) -> Iterator[tuple[str, CallResult[P]]]:
        """Each site with its result, in any order. If `private`, payloads are handles that `_fetch` resolves."""

    @staticmethod
    @abstractmethod
    def _fetch(held: Any) -> Any:
        """The payload of a handle; called at a site."""

    def client_state(self, site: str) -> Any:
        """The client state of `site`, or None."""
        return self.client_states.get(site)


class LocalFleet(BaseFleet):
    """Runs all sites in this process, one after the other: for tests, debugging and small trials.

    `own_threads` maps a site to its number of torch threads, if it differs from `threads`.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        rounds: int = 1,
        min_replies: float | int = 1.0,
        device: str = "cpu",
        threads: int = 1,
        own_threads: Mapping[str, int] | None = None,
        chaos: FaultPlan | None = None,
        data_cache: SiteDataCache | None = None,
        batch_sites: int = 1,
    ) -> None:
        single = own_threads or {}
        options = FleetOptions(seed, rounds, min_replies, batch_sites=batch_sites, single_sites=single)
        super().__init__(task, options)
        self.executor = SiteExecutor(task, seed, device, threads, chaos, own_threads, data_cache)

    def _run_calls(
        self, client: Client[P], broadcast: Any, per_site: Mapping[str, Any] | None, call: CallKey, private: bool
    ) -> Iterator[tuple[str, CallResult[P]]]:
        make_readonly((broadcast, per_site))
        for group in self.groups(call):
            arguments = [
                SiteArguments(
                    site, NOT_GIVEN if per_site is None else per_site[site], self.client_states.held.get(site)
                )
                for site in group
            ]
            with preserve_rng():  # the server half of the round uses the same generators
                results = self.executor.execute_group(client, arguments, call, broadcast)
            yield from zip(group, results, strict=True)

    @staticmethod
    def _fetch(held: Any) -> Any:
        return held
