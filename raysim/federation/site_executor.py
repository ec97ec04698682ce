"""Executes calls at sites in one process: opens the data, seeds each call, runs and times the client function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from raysim.core.contracts import UNCHANGED, Metrics, Reply, Site, Task
from raysim.core.errors import LostObjectError, RaysimError, RunError, SiteError
from raysim.core.fault_injection import FaultPlan
from raysim.core.pytree import make_readonly, nbytes
from raysim.core.seeding import seed_all
from raysim.core.user_errors import describe_exception, format_user_traceback, source_of
from raysim.federation.return_checks import ReplyError, check_reply
from raysim.federation.site_data import SiteDataCache, fingerprint, write_message
from raysim.storage.serialization import encode
from raysim.training.site_batch import run_together

P = TypeVar("P")
Client = Callable[..., Reply[P]]
NOT_GIVEN: Any = object()
EVALUATION_CALL = "judge"  # the index of an evaluation; part of its seed, so another value would change results

# The site whose client function is running, and the bytes that it has read from other sites; None at the server.
_reader: ContextVar[tuple[str, dict[tuple[int, str], int]] | None] = ContextVar("reader", default=None)


@dataclass(frozen=True)
class CallKey:
    """Identifies a call in seeds and messages. `round` and `index`, the position in the round, are zero-based.

    The index of an evaluation is EVALUATION_CALL.
    """

    seed: int
    round: int
    rounds: int
    index: int | str


@dataclass(frozen=True)
class Failure:
    """The exception of a client function as text, because the object may not be picklable.

    `wrong_code`: the arguments or the reply of the client function have wrong types, independently of the data.
    """

    cause: str
    traceback: str
    wrong_code: bool = False


@dataclass(frozen=True)
class CallResult(Generic[P]):
    """The reply of a site to a call, or its failure.

    `seconds` is the time of the call, `size` the bytes of the payload, and `between` the bytes read from other sites.
    On Ray, payload and client state may be references.
    """

    payload: P
    weight: float = 1.0
    metrics: Metrics = field(default_factory=dict)
    client_state: Any = UNCHANGED
    seconds: float = 0.0
    size: int = 0
    between: int = 0
    failure: Failure | None = None


class ExchangeHandle(Generic[P]):
    """A handle to payloads that are sent directly between sites. Only sites can read it.

    `fetch` returns the payload for the held value of a site: the identity in one process, `ray.get` on Ray.
    """

    nbytes = 0  # of the handle; the payloads are counted when a site reads them

    def __init__(self, held: Mapping[str, Any], metrics: Mapping[str, Metrics], fetch: Callable[[Any], P]) -> None:
        self.sites: Sequence[str] = tuple(held)
        self.metrics = metrics
        self._held, self._fetch = dict(held), fetch

    def __getitem__(self, site: str) -> P:
        """The payload of `site`, read-only. Raises RuntimeError at the server, KeyError for a site without payload."""
        reader = _reader.get()
        if reader is None:
            raise RuntimeError("the server cannot read an exchange; read it at a site, inside a client function")
        payload = self._fetch(self._held[site])
        name, read = reader
        if site != name:
            read[id(self), site] = nbytes(payload)  # counted once, even if it is read several times
        return payload


def torch_threads(cpus: float) -> int:
    """The number of torch threads of an actor with `cpus` CPUs."""
    return max(1, int(cpus))


@dataclass(frozen=True)
class SiteArguments:
    """The arguments of a call that differ between sites."""

    site: str
    per_site: Any = NOT_GIVEN
    client_state: Any = None


class SiteExecutor:
    """Executes calls at any of the task's sites, one site or one group at a time; keeps their data open between calls.

    `own_threads` maps a site to its number of torch threads, if it differs from `threads`.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        device: str,
        threads: int,
        chaos: FaultPlan | None = None,
        own_threads: Mapping[str, int] | None = None,
        data_cache: SiteDataCache | None = None,
    ) -> None:
        self.threads, self.own_threads = threads, own_threads or {}
        torch.set_num_threads(threads)
        self.task, self.seed, self.device = task, seed, torch.device(device)
        self.template = task.start(seed).to(self.device)
        self._template_fingerprint = fingerprint(self.template.state_dict())
        self.data_cache = SiteDataCache(task) if data_cache is None else data_cache
        self.chaos = chaos or FaultPlan()

    def execute(
        self,
        client: Client[P],
        site: str,
        call: CallKey,
        broadcast: Any,
        per_site: Any = NOT_GIVEN,
        client_state: Any = None,
    ) -> CallResult[P]:
        """The result of the client function at `site`. An exception in the function becomes `CallResult.failure`.

        Does not restore the global random generators. Raises LostObjectError if a payload or a client state was lost
        with a node, and SiteError if the function has changed one of its arguments, which other sites get too.
        """
        return self.execute_group(client, [SiteArguments(site, per_site, client_state)], call, broadcast)[0]

    def execute_group(
        self, client: Client[P], sites: Sequence[SiteArguments], call: CallKey, broadcast: Any
    ) -> list[CallResult[P]]:
        """As `execute`, at several sites, whose networks train in one batch: see `raysim.training.site_batch`."""
        received = [(sites[0].site, "the broadcast", broadcast)]  # the same object for all sites
        for each in sites:
            received.append((each.site, "its value of per_site", each.per_site))
            received.append((each.site, "site.client_state", each.client_state))
        before = [fingerprint(value) for _, _, value in received]
        results = self._call_group(client, sites, call, broadcast)
        for (site, name, value), expected in zip(received, before, strict=True):
            if fingerprint(value) != expected:
                raise SiteError(site, call.round + 1, write_message(name))
        if fingerprint(self.template.state_dict()) != self._template_fingerprint:
            raise SiteError(sites[0].site, call.round + 1, write_message("site.template"))
        return results

    def _call_group(
        self, client: Client[P], sites: Sequence[SiteArguments], call: CallKey, broadcast: Any
    ) -> list[CallResult[P]]:
        calls = [
            partial(self._call, client, each.site, call, broadcast, each.per_site, each.client_state) for each in sites
        ]
        if len(calls) == 1:
            return [calls[0]()]
        start = time.perf_counter()
        results = run_together(calls)
        seconds = (time.perf_counter() - start) / len(sites)
        return [replace(result, seconds=seconds) for result in results]

    def _call(
        self, client: Client[P], site: str, call: CallKey, broadcast: Any, per_site: Any, client_state: Any
    ) -> CallResult[P]:
        start, read = time.perf_counter(), dict[tuple[int, str], int]()
        # The number of threads affects the result: torch splits a sum among its threads.
        if (threads := self.own_threads.get(site, self.threads)) != torch.get_num_threads():
            torch.set_num_threads(threads)
        token = _reader.set((site, read))
        try:
            seed_all(call.seed, call.round, call.index, site)
            view = self._site(site, call, client_state)
            try:
                reply = client(view, broadcast) if per_site is NOT_GIVEN else client(view, broadcast, per_site)
            finally:
                self.data_cache.check_unchanged(site)
            check_reply(reply, source_of(client))
            make_readonly((reply.payload, reply.client_state))
            _check_storable(reply.client_state)
            size = nbytes(reply.payload)  # raises TypeError for a payload that cannot be sent
        except LostObjectError:  # not a failure of the client function
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a client function may raise anything
            source = source_of(client) if isinstance(error, TypeError) else ""  # such as wrong arguments
            return _failed_result(_failure(error, source), time.perf_counter() - start)
        finally:
            _reader.reset(token)
        if delay := self.chaos.delay(site, time.perf_counter() - start):
            time.sleep(delay)
        seconds = time.perf_counter() - start
        if self.chaos.drops(call.seed, call.round, call.index, site):
            return _failed_result(Failure("reply dropped by chaos", ""), seconds)
        return CallResult(
            reply.payload, reply.weight, reply.metrics, reply.client_state, seconds, size, sum(read.values())
        )

    def _site(self, name: str, call: CallKey, client_state: Any) -> Site[Any]:
        data = self.data_cache[name]
        return Site(name, self.task, data, client_state, self.device, self.seed, call.round, call.rounds, self.template)


def _check_storable(client_state: Any) -> None:
    """Raises RunError for a client state that a checkpoint cannot store."""
    try:
        encode(None if client_state is UNCHANGED else client_state)
    except TypeError as error:
        raise RunError(f"the client state of a reply: {error}") from error


def _failed_result(failure: Failure, seconds: float) -> CallResult[Any]:
    return CallResult(None, failure=failure, seconds=seconds)


def _failure(error: BaseException, source: str) -> Failure:
    if isinstance(error, RaysimError):  # its message is complete
        return Failure(str(error), "", isinstance(error, ReplyError))
    return Failure(describe_exception(error, source), format_user_traceback(error), isinstance(error, TypeError))
