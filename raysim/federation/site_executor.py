"""What plays sites in one process: opens their data, seeds each call, runs the client function, times it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from raysim.core.contracts import SPLITS, UNCHANGED, Data, Metrics, Reply, Site, Task
from raysim.core.errors import LostObjectError, RaysimError
from raysim.core.fault_injection import FaultPlan
from raysim.core.pytree import make_readonly, nbytes
from raysim.core.seeding import seed_all

P = TypeVar("P")
Client = Callable[..., Reply[P]]
NOT_GIVEN: Any = object()
DATA_CACHE_BYTES = (
    256 * 2**20
)  # bytes of data that a process keeps in memory for sites it has played, beside those it maps

# Which site is being played here, and the bytes it has read from others: None in a process that plays none.
_reader: ContextVar[tuple[str, dict[tuple[int, str], int]] | None] = ContextVar("reader", default=None)


@dataclass(frozen=True)
class CallKey:
    """Names one call at the sites, for seeds and messages: round from 0, and the how-manieth call in it."""

    seed: int
    round: int
    rounds: int
    index: int | str


@dataclass(frozen=True)
class Failure:
    """A client function's exception, as text: it may not survive the trip as an object."""

    cause: str
    traceback: str


@dataclass(frozen=True)
class CallResult(Generic[P]):
    """A reply and how it came about.

    `size` are the payload's bytes, `between` those read from other sites; memory and payload may be references.
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
    """Payloads that sites have for one another; travels as a handle and is read at sites only.

    `fetch` turns what is held for a site into its payload: the identity in one process, `ray.get` on Ray.
    """

    nbytes = 0  # the handle itself; what is read through it is counted where it is read

    def __init__(self, held: Mapping[str, Any], metrics: Mapping[str, Metrics], fetch: Callable[[Any], P]) -> None:
        self.sites: Sequence[str] = tuple(held)
        self.metrics = metrics
        self._held, self._fetch = dict(held), fetch

    def __getitem__(self, site: str) -> P:
        """The payload of `site`, read-only. Raises RuntimeError at the server, KeyError for a site without one."""
        reader = _reader.get()
        if reader is None:
            raise RuntimeError("an exchange is read at sites, inside a client function, never at the server")
        payload = self._fetch(self._held[site])
        name, read = reader
        if site != name:
            read[id(self), site] = nbytes(payload)  # read again, it has come already
        return payload


def torch_threads(cpus: float) -> int:
    """The torch threads of an actor with so many CPUs."""
    return max(1, int(cpus))


class SiteDataCache:
    """The data of a task's sites that a process keeps open, from run to run too: a search opens them once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._data: dict[str, Data] = {}
        self.held = 0

    def __getitem__(self, name: str) -> Data:
        if name not in self._data:
            self._data[name] = self.task.open(name)
            self.held += _in_memory(self._data[name])
        while self.held > DATA_CACHE_BYTES and len(self._data) > 1:
            oldest = next(site for site in self._data if site != name)
            self.held -= _in_memory(self._data.pop(oldest))
        return self._data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)


class SiteExecutor:
    """Plays any of the task's sites, one call at a time; keeps their data open between calls."""

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
        """The client function's reply at `site`; an exception in it becomes `Answer.failure`.

        It leaves the global random generators as the function left them.
        """
        start, read = time.perf_counter(), dict[tuple[int, str], int]()
        # The count of threads is part of the result: it decides how torch splits its sums.
        if (threads := self.own_threads.get(site, self.threads)) != torch.get_num_threads():
            torch.set_num_threads(threads)
        token = _reader.set((site, read))
        try:
            seed_all(call.seed, call.round, call.index, site)
            place = self._site(site, call, client_state)
            reply = client(place, broadcast) if per_site is NOT_GIVEN else client(place, broadcast, per_site)
            if not isinstance(reply, Reply):
                raise TypeError(f"a client function returns a Reply, not {type(reply).__name__}")
            make_readonly((reply.payload, reply.client_state))
            size = nbytes(reply.payload)  # raises here, with the site, for what cannot travel
        except LostObjectError:  # no fault of the function's
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's function raises, with its site
            return _failed_result(_failure(error), time.perf_counter() - start)
        finally:
            _reader.reset(token)
        if delay := self.chaos.delay(site, time.perf_counter() - start):
            time.sleep(delay)
        seconds = time.perf_counter() - start
        if self.chaos.drops(call.seed, call.round, call.index, site):
            return _failed_result(Failure("chaos dropped its reply", ""), seconds)
        return CallResult(
            reply.payload, reply.weight, reply.metrics, reply.client_state, seconds, size, sum(read.values())
        )

    def _site(self, name: str, call: CallKey, client_state: Any) -> Site[Any]:
        data = self.data_cache[name]
        return Site(name, self.task, data, client_state, self.device, self.seed, call.round, call.rounds, self.template)


def _in_memory(data: Data) -> int:
    """The bytes that `data` really takes: what is mapped from a file takes none."""
    arrays = (array for split in SPLITS for array in vars(data[split]).values())
    return sum(array.nbytes for array in arrays if array is not None and not isinstance(array, np.memmap))


def _failed_result(failure: Failure, seconds: float) -> CallResult[Any]:
    return CallResult(None, failure=failure, seconds=seconds)


def _failure(error: BaseException) -> Failure:
    text = str(error).strip() or "no message"
    if isinstance(error, RaysimError):  # it says all there is to say
        return Failure(text, "")
    return Failure(f"{type(error).__name__}: {text}", traceback.format_exc())
