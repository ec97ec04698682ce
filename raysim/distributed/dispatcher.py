"""The dispatcher of a call at many sites: sends sites to client actors, and re-queues the sites of a lost actor."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RaySystemError, RayTaskError

from raysim.core.contracts import UNCHANGED
from raysim.core.errors import LostObjectError, ResumableError, RunError
from raysim.core.formatting import join_names
from raysim.core.results import FailureAction, FailureEvent
from raysim.distributed.client_actor import IN_STORE
from raysim.distributed.ray_errors import storage_full_error, summarize
from raysim.distributed.waiter import Waiter
from raysim.federation.site_executor import CallResult, Failure

if TYPE_CHECKING:
    from raysim.distributed.ray_fleet import RayFleet

CALLS_AHEAD = 2  # quick calls that an actor has at a time: the second one is queued, so that the actor is never idle
QUICK_S = 1.0  # seconds up to which a call is quick: a site behind a longer call would wait while other actors are idle
BATCH_S = 0.5  # seconds of work in one call, because each call costs about 0.002 s in Ray
QUEUE_SHARE = 1.5  # a call takes at most two thirds of an actor's queue, so that all actors end at the same time
MAX_LOSSES = 3  # losses of the actor after which the site is considered the cause, not the machine


class ActorLoss(Enum):
    """The reason why an actor was lost, with the cure if the same site causes the loss repeatedly."""

    DIED = "If memory ran out, use a smaller task.batch_size or fewer actors (resources.client_actors)"
    TIMED_OUT = "If the work takes that long, set a larger site_timeout_s"


@dataclass(frozen=True)
class InFlightCall:
    """A call that was sent and has not returned. `handle` distinguishes an actor from its replacement."""

    actor: str
    handle: Any
    sites: list[str]
    refs: list[Any]
    start: float
    quarantined: bool


class Dispatcher:
    """Runs a client function at all sites of a fleet: once at each site, and again if its actor was lost."""

    def __init__(self, fleet: RayFleet, request: Any, per_site: Mapping[str, Any] | None) -> None:
        self.fleet, self.pool, self.request, self.per_site = fleet, fleet.pool, request, per_site
        self.queues = fleet.site_queues()
        self.open_queues = self.pool.open_queues(self.queues)
        # The time at which each actor last responded, or got a call when it had none.
        self.last_response_at: dict[str, float] = {}
        self.in_flight: dict[Any, InFlightCall] = {}
        self.losses: Counter[str] = Counter()  # losses of the actor, by site
        # Sites of lost actors. Each runs in a separate call, so that the site that causes the losses is found.
        self.quarantined_sites: deque[str] = deque()
        self.exhausted_sites: deque[tuple[str, CallResult[Any]]] = deque()  # have caused too many losses

    def results(self) -> Iterator[tuple[str, CallResult[Any]]]:
        """The result of each site, in order of arrival.

        Raises LostObjectError if an object was lost that the call needs, RunError for errors that a retry cannot fix.
        """
        no_actor = Waiter(self.fleet.no_actor_timeout_s)
        while self._fill_actors() or self.quarantined_sites or self.exhausted_sites or any(self.queues.values()):
            while self.exhausted_sites:
                yield self.exhausted_sites.popleft()
            # New actors are listed before calls: in quick rounds, there is always a call that has returned.
            expected = [*self.pool.pending_starts, *self.in_flight]
            ready, _ = ray.wait(expected, num_returns=1, timeout=1.0) if expected else ([], [])
            self.fleet.check_stop()
            if self.in_flight:
                no_actor.reset()
            elif no_actor.expired:
                raise ResumableError(self._no_actor_message())
            for ref in ready:
                if ref in self.pool.pending_starts:
                    self._finish_start(ref)
                elif ref in self.in_flight:  # otherwise its actor was lost in an earlier call
                    yield from self._handle_response(self.in_flight.pop(ref))
            self._expire_hung_calls()

    def _finish_start(self, ref: Any) -> None:
        if dropped := self.pool.finish_start(ref):
            self.fleet.record_dropped(*dropped)

    def _fill_actors(self) -> bool:
        """Send calls to every available actor, up to its limit. Returns whether any call is in flight."""
        load: Counter[str] = Counter()
        for sent in self.in_flight.values():
            load[sent.actor] += CALLS_AHEAD if sent.quarantined else self._call_load(sent.sites)
        seconds, available = self.fleet.call_seconds, self.pool.available_actors()
        for actor in available:
            quarantined = None if load[actor] else self._take_quarantined(actor)
            if quarantined is not None:
                self._send_call(actor, [quarantined], quarantined=True)
                load[actor] = CALLS_AHEAD
            while load[actor] < CALLS_AHEAD and (sites := take_batch(self.queues[actor], seconds)):
                self._send_call(actor, sites)
                load[actor] += self._call_load(sites)
        for actor in available:  # after each actor has taken sites from its queue
            if not load[actor]:
                longest = max(self.open_queues[actor].values(), key=len)
                if sites := take_batch(longest, seconds, last=True):
                    self._send_call(actor, sites)
        self.fleet.progress.active_sites = tuple(site for sent in self.in_flight.values() for site in sent.sites)
        return bool(self.in_flight)

    def _call_load(self, sites: Sequence[str]) -> int:
        """The share of CALLS_AHEAD that a call uses: all of it, unless the call is known to be quick."""
        return 1 if sum(self.fleet.call_seconds.get(site, QUICK_S) for site in sites) < QUICK_S else CALLS_AHEAD

    def _take_quarantined(self, actor: str) -> str | None:
        """Remove and return the next quarantined site that `actor` may run."""
        site_to_actor = self.pool.site_to_actor
        site = next((s for s in self.quarantined_sites if site_to_actor[s] in self.open_queues[actor]), None)
        if site is not None:
            self.quarantined_sites.remove(site)
        return site

    def _send_call(self, actor: str, sites: list[str], quarantined: bool = False) -> None:
        arguments = None if self.per_site is None else {site: self.per_site[site] for site in sites}
        client_states = (self.fleet.client_states.held.get(site) for site in sites)
        handle = self.pool.handle(actor)
        if all(sent.actor != actor for sent in self.in_flight.values()):
            self.last_response_at[actor] = time.monotonic()
        self.pool.move_sites(sites, actor)
        refs: list[Any] = handle.execute.options(num_returns=3 * len(sites), name=self._call_title(sites)).remote(
            self.request, sites, arguments, *client_states
        )
        self.in_flight[refs[0]] = InFlightCall(actor, handle, sites, refs, time.monotonic(), quarantined)

    def _call_title(self, sites: Sequence[str]) -> str:
        """The name of a call on the dashboard."""
        more = f" +{len(sites) - 3}" if len(sites) > 3 else ""
        return f"round {self.fleet.accounting.number}, {self.fleet.progress.phase}: {', '.join(sites[:3])}{more}"

    def _handle_response(self, sent: InFlightCall) -> Iterator[tuple[str, CallResult[Any]]]:
        count = len(sent.sites)
        self.last_response_at[sent.actor] = time.monotonic()
        try:
            results: list[CallResult[Any]] = ray.get(sent.refs[:count])
        except RayError as error:
            self._handle_ray_error(sent, error)
            return
        state_refs, payload_refs = sent.refs[count : 2 * count], sent.refs[2 * count :]
        for i, (site, result) in enumerate(zip(sent.sites, results, strict=True)):
            client_state = UNCHANGED if result.client_state is UNCHANGED else state_refs[i]
            payload = payload_refs[i] if result.payload is IN_STORE else result.payload
            yield site, replace(result, client_state=client_state, payload=payload)

    def _handle_ray_error(self, sent: InFlightCall, error: RayError) -> None:
        """Re-queue the sites of a lost actor. Raises RunError for errors that a retry cannot fix."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        round = self.fleet.accounting.number
        if isinstance(cause, LostObjectError | ObjectLostError):
            raise LostObjectError(f"round {round}: {summarize(cause)}") from error
        if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
            raise storage_full_error(cause) from error
        if isinstance(error, RayTaskError | RaySystemError):  # raised by the actor; or its reply cannot be read here
            names = join_names([f"'{site}'" for site in sent.sites])
            failure = RunError(f"round {round}: {sent.actor} failed at {names}: {summarize(cause)}")
            failure.remote = str(error)
            raise failure from error
        self._replace_and_requeue(sent, ActorLoss.DIED, summarize(error))

    def _expire_hung_calls(self) -> None:
        """Replace the actors that have not responded for too long: they hang, or their work never ends."""
        now, timeout_s = time.monotonic(), self.fleet.options.site_timeout_s
        current = {
            sent.actor: ref for ref, sent in reversed(self.in_flight.items())
        }  # the other calls are queued in the actor
        for actor, ref in current.items():
            if now - self.last_response_at[actor] > timeout_s * len(self.in_flight[ref].sites):
                cause = f"no result for {timeout_s:g} s (site_timeout_s)"
                self._replace_and_requeue(self.in_flight.pop(ref), ActorLoss.TIMED_OUT, cause)

    def _replace_and_requeue(self, sent: InFlightCall, loss: ActorLoss, cause: str) -> None:
        """Start the actor again, and quarantine all sites that it had; a site with too many losses fails instead."""
        behind = [ref for ref, other in self.in_flight.items() if other.handle is sent.handle]
        sites = [*sent.sites, *(site for ref in behind for site in self.in_flight.pop(ref).sites)]
        self.losses.update(sites)
        self.pool.replace(sent.actor)
        seconds = time.monotonic() - sent.start
        if sent.quarantined and self.losses[sites[0]] >= MAX_LOSSES:
            failure = Failure(_exhausted_message(loss, cause), "")
            self.exhausted_sites.append((sites[0], CallResult(None, failure=failure, seconds=seconds)))
            return
        self.quarantined_sites.extend(sites)
        number, phase = self.fleet.accounting.number, self.fleet.progress.phase
        event = FailureEvent(number, phase, tuple(sites), sent.actor, cause, FailureAction.RETRIED, seconds)
        self.fleet.accounting.failures.append(event)

    def _no_actor_message(self) -> str:
        left = len(self.quarantined_sites) + sum(map(len, self.queues.values()))
        return (
            f"round {self.fleet.accounting.number}: no client actor has restarted for "
            f"{self.fleet.no_actor_timeout_s:g} s, and {left} sites wait; the cluster has no free resources for one. "
            "When it has, `raysim resume` continues from the last checkpoint"
        )


def _exhausted_message(loss: ActorLoss, cause: str) -> str:
    return f"the actor that ran only this site was lost, {MAX_LOSSES} losses in all; last cause: {cause}. {loss.value}"


def take_batch(queue: deque[str], seconds: Mapping[str, float], last: bool = False) -> list[str]:
    """Take the next sites of a queue for one call, or its `last` sites, which are the cheapest.

    Returns one site, or as many quick ones (by the `seconds` of their last calls) as add up to BATCH_S, or none.
    """
    take = deque[str].pop if last else deque[str].popleft
    sites: list[str] = []
    most, work = len(queue) / QUEUE_SHARE, 0.0
    while queue and (not sites or (len(sites) < most and work < BATCH_S)):
        sites.append(take(queue))
        work += seconds.get(sites[-1], BATCH_S)
    return sites
