"""One call at many sites: which client actor has which, who waits, and what is done when an actor is lost."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RaySystemError, RayTaskError

from raysim.core.contracts import UNCHANGED
from raysim.core.errors import LostObjectError, ResumableError, RunError
from raysim.core.formatting import join_names
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.client_actor import IN_STORE
from raysim.distributed.ray_errors import storage_full_error, summarize
from raysim.federation.site_executor import CallResult, Failure

if TYPE_CHECKING:
    from raysim.distributed.ray_fleet import RayFleet

CALLS_AHEAD = (
    2  # quick calls given to an actor at a time: the second waits there, so the actor never waits for the server
)
QUICK_S = 1.0  # seconds of work up to which a call is quick: what waits behind a longer one, an idle actor might take
BATCH_S = 0.5  # seconds of work that make a call worth while: Ray spends about 0.002 s on a call, whatever it carries
QUEUE_SHARE = 1.5  # a call takes at most two thirds of what waits for an actor, so that all are done at the same time
MAX_LOSSES = 3  # losses of an actor after which what it played, and not the machine, is to blame


@dataclass(frozen=True)
class InFlightCall:
    """A call under way: `handle` tells the actor from the one that has taken its place since."""

    actor: str
    handle: Any
    sites: list[str]
    refs: list[Any]
    start: float
    quarantined: bool


class Dispatcher:
    """Plays a client function at all sites of a fleet; each site once, or again if the actor was lost meanwhile."""

    def __init__(self, fleet: RayFleet, order: Any, per_site: Mapping[str, Any] | None) -> None:
        self.fleet, self.order, self.per_site = fleet, order, per_site
        self.waiting = fleet.queues()
        together = {
            actor: queue for actor, queue in self.waiting.items() if actor not in fleet.dedicated_actors.values()
        }
        # Whose sites each actor may play: those of all that share, or its single one.
        self.pools = {actor: together if actor in together else {actor: self.waiting[actor]} for actor in self.waiting}
        self.last_response_at: dict[
            str, float
        ] = {}  # when each actor last answered, or was given work when it had none
        self.in_flight: dict[Any, InFlightCall] = {}
        self.tries: Counter[str] = Counter()
        self.exhausted_sites: deque[tuple[str, CallResult[Any]]] = deque()  # sites that have no try left
        self.quarantined_sites: deque[str] = (
            deque()
        )  # were with an actor that was lost: each plays alone, so as to tell which

    def results(self) -> Iterator[tuple[str, CallResult[Any]]]:
        """Each site's result as it comes.

        Raises LostError where something that lay on a lost node is needed, RunError for what trying again cannot mend.
        """
        idle_since = time.monotonic()
        while self._fill_actors() or self.quarantined_sites or self.exhausted_sites or any(self.waiting.values()):
            while self.exhausted_sites:
                yield self.exhausted_sites.popleft()
            # An actor that is up before results, of which in quick rounds there is always one.
            expected = [*self.fleet.starting, *self.in_flight]
            ready, _ = ray.wait(expected, num_returns=1, timeout=1.0) if expected else ([], [])
            self.fleet.check_stop()
            if self.in_flight:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.fleet.patience:
                raise ResumableError(self._no_actor_message())
            for ref in ready:
                if ref in self.fleet.starting:
                    self.fleet.started(ref)
                elif ref in self.in_flight:  # else its actor was lost with a call before it
                    yield from self._handle_response(self.in_flight.pop(ref))
            self._expire_hung_calls()

    def _fill_actors(self) -> bool:
        """Give every actor that is up as much as it may have; whether anything is under way."""
        busy: Counter[str] = Counter()
        for sent in self.in_flight.values():
            busy[sent.actor] += CALLS_AHEAD if sent.quarantined else self._load(sent.sites)
        for actor in self.fleet.up():
            suspect = None if busy[actor] else self._next_quarantined(actor)
            if suspect is not None:
                self._send_call(actor, [suspect], quarantined=True)
                busy[actor] = CALLS_AHEAD
            while busy[actor] < CALLS_AHEAD and (sites := take_batch(self.waiting[actor], self.fleet.ledger.seconds)):
                self._send_call(actor, sites)
                busy[actor] += self._load(sites)
        for actor in self.fleet.up():  # now that all have of their own what they can take
            if not busy[actor]:
                fullest = max(self.pools[actor].values(), key=len)
                if sites := take_batch(fullest, self.fleet.ledger.seconds, last=True):
                    self._send_call(actor, sites)
        self.fleet.ledger.progress.active_sites = tuple(site for sent in self.in_flight.values() for site in sent.sites)
        return bool(self.in_flight)

    def _load(self, sites: Sequence[str]) -> int:
        """How much of AHEAD a call takes: all of it, unless it is known to be quick."""
        return 1 if sum(self.fleet.ledger.seconds.get(site, QUICK_S) for site in sites) < QUICK_S else CALLS_AHEAD

    def _next_quarantined(self, actor: str) -> str | None:
        """Takes out the next suspect that `actor` may play."""
        site = next((s for s in self.quarantined_sites if self.fleet.site_to_actor[s] in self.pools[actor]), None)
        if site is not None:
            self.quarantined_sites.remove(site)
        return site

    def _send_call(self, actor: str, sites: list[str], quarantined: bool = False) -> None:
        given = None if self.per_site is None else {site: self.per_site[site] for site in sites}
        client_states = (self.fleet.ledger.client_states.get(site) for site in sites)
        handle = self.fleet.actors[actor]
        if not any(sent.actor == actor for sent in self.in_flight.values()):
            self.last_response_at[actor] = time.monotonic()
        self.fleet.site_to_actor.update(dict.fromkeys(sites, actor))  # where their data are open from now on
        refs: list[Any] = handle.execute.options(num_returns=3 * len(sites), name=self._title(sites)).remote(
            self.order, sites, given, *client_states
        )
        self.in_flight[refs[0]] = InFlightCall(actor, handle, sites, refs, time.monotonic(), quarantined)

    def _title(self, sites: Sequence[str]) -> str:
        """What the dashboard calls a call."""
        more = f" +{len(sites) - 3}" if len(sites) > 3 else ""
        return f"round {self.fleet.ledger.round + 1}, {self.fleet.ledger.progress.phase}: {', '.join(sites[:3])}{more}"

    def _handle_response(self, sent: InFlightCall) -> Iterator[tuple[str, CallResult[Any]]]:
        count = len(sent.sites)
        self.last_response_at[sent.actor] = time.monotonic()
        try:
            results: list[CallResult[Any]] = ray.get(sent.refs[:count])
        except RayError as error:
            self._handle_ray_error(sent, error)
            return
        kept, apart = sent.refs[count : 2 * count], sent.refs[2 * count :]
        for i, (site, result) in enumerate(zip(sent.sites, results, strict=True)):
            client_state = UNCHANGED if result.client_state is UNCHANGED else kept[i]
            payload = apart[i] if result.payload is IN_STORE else result.payload
            yield site, replace(result, client_state=client_state, payload=payload)

    def _handle_ray_error(self, sent: InFlightCall, error: RayError) -> None:
        """Have the sites of a lost actor played again, by whoever is there. Raises RunError where that cannot help."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, LostObjectError | ObjectLostError):
            raise LostObjectError(f"round {self.fleet.ledger.round + 1}: {summarize(cause)}") from error
        if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
            raise storage_full_error(cause) from error
        if isinstance(error, RayTaskError | RaySystemError):  # an exception there; a reply that cannot be read here
            number = self.fleet.ledger.round + 1
            failed = RunError(f"round {number}: {sent.actor} failed at {_named(sent.sites)}: {summarize(cause)}")
            failed.remote = str(error)
            raise failed from error
        self._replace_and_requeue(sent, summarize(error))

    def _expire_hung_calls(self) -> None:
        """Give up the actors that have not answered for too long: they hang, or what they do never ends."""
        now, patience = time.monotonic(), self.fleet.ledger.site_timeout_s
        first = {sent.actor: ref for ref, sent in reversed(self.in_flight.items())}  # what each is at; the rest waits
        for actor, ref in first.items():
            if now - self.last_response_at[actor] > patience * len(self.in_flight[ref].sites):
                self._replace_and_requeue(self.in_flight.pop(ref), f"no result for {patience:g} s (site_timeout_s)")

    def _replace_and_requeue(self, sent: InFlightCall, cause: str) -> None:
        """Start the actor anew, and have what was with it played again."""
        behind = [ref for ref, other in self.in_flight.items() if other.handle is sent.handle]
        sites = [*sent.sites, *(site for ref in behind for site in self.in_flight.pop(ref).sites)]
        self.tries.update(sites)
        self.fleet.replace(sent.actor)
        seconds = time.monotonic() - sent.start
        if sent.quarantined and self.tries[sites[0]] >= MAX_LOSSES:
            self.exhausted_sites.append(
                (sites[0], CallResult(None, failure=Failure(_exhausted_message(cause), ""), seconds=seconds))
            )
            return
        self.quarantined_sites.extend(sites)
        ledger = self.fleet.ledger
        ledger.failures.append(
            FailureEvent(
                ledger.round + 1, ledger.progress.phase, tuple(sites), sent.actor, cause, FailureAction.RETRIED, seconds
            )
        )

    def _no_actor_message(self) -> str:
        left = len(self.quarantined_sites) + sum(map(len, self.waiting.values()))
        return (
            f"round {self.fleet.ledger.round + 1}: no client actor has come back for {self.fleet.patience:g} s, and "
            f"{left} sites wait; the cluster has no room for one. When it has, `raysim resume` goes on from the last "
            "checkpoint"
        )


def _exhausted_message(cause: str) -> str:
    long = "site_timeout_s" in cause
    cure = "If memory ran out, take a smaller task.batch_size or fewer actors (resources.client_actors)"
    cure = "If the work takes that long, give a larger site_timeout_s" if long else cure
    return f"the actor that played it alone was lost, {MAX_LOSSES} losses in all, last because: {cause}. {cure}"


def _named(sites: Sequence[str]) -> str:
    return join_names([f"'{site}'" for site in sites])


def take_batch(queue: deque[str], seconds: Mapping[str, float], last: bool = False) -> list[str]:
    """Takes out the next sites of a queue, or its `last` ones, which are the cheapest.

    One site, or as many quick ones (by the `seconds` of their last calls) as make a call worth while, or none.
    """
    take = deque[str].pop if last else deque[str].popleft
    sites: list[str] = []
    most, carried = len(queue) / QUEUE_SHARE, 0.0
    while queue and (not sites or (len(sites) < most and carried < BATCH_S)):
        sites.append(take(queue))
        carried += seconds.get(sites[-1], BATCH_S)
    return sites
