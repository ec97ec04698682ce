"""The dispatcher of a call at many sites: sends sites to client actors, and re-queues the sites of a lost actor."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

Group = tuple[str, ...]  # sites that run together in one actor

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
    groups: list[Group]
    refs: list[Any]
    start: float
    quarantined: bool

    @property
    def sites(self) -> list[str]:
        return flatten(self.groups)


class Dispatcher:
    """Runs a client function at all sites of a fleet: once at each site, and again if its actor was lost.

    The sites of a group run together, and are repeated together.
    """

    def __init__(
        self, fleet: RayFleet, request: Any, per_site: Mapping[str, Any] | None, groups: Sequence[Group]
    ) -> None:
        self.fleet, self.pool, self.request, self.per_site = fleet, fleet.pool, request, per_site
        self.queues = fleet.group_queues(groups)
        self.open_queues = self.pool.open_queues(self.queues)
        # The time at which each actor last responded, or got a call when it had none.
        self.last_response_at: dict[str, float] = {}
        self.in_flight: dict[Any, InFlightCall] = {}
        self.losses: Counter[Group] = Counter()  # losses of the actor, by group
        # Groups of lost actors. Each runs in a separate call, so that the one that causes the losses is found.
        self.quarantined_groups: deque[Group] = deque()
        self.exhausted_sites: deque[tuple[str, CallResult[Any]]] = deque()  # have caused too many losses

    def results(self) -> Iterator[tuple[str, CallResult[Any]]]:
        """The result of each site, in order of arrival.

        Raises LostObjectError if an object was lost that the call needs, RunError for errors that a retry cannot fix.
        """
        no_actor = Waiter(self.fleet.no_actor_timeout_s)
        while self._fill_actors() or self.quarantined_groups or self.exhausted_sites or any(self.queues.values()):
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
            load[sent.actor] += CALLS_AHEAD if sent.quarantined else self._call_load(sent.groups)
        seconds, available = self.fleet.call_seconds, self.pool.available_actors()
        for actor in available:
            quarantined = None if load[actor] else self._take_quarantined(actor)
            if quarantined is not None:
                self._send_call(actor, [quarantined], quarantined=True)
                load[actor] = CALLS_AHEAD
            while load[actor] < CALLS_AHEAD and (groups := take_batch(self.queues[actor], seconds)):
                self._send_call(actor, groups)
                load[actor] += self._call_load(groups)
        for actor in available:  # after each actor has taken sites from its queue
            if not load[actor]:
                longest = max(self.open_queues[actor].values(), key=len)
                if groups := take_batch(longest, seconds, last=True):
                    self._send_call(actor, groups)
        self.fleet.progress.active_sites = tuple(site for sent in self.in_flight.values() for site in sent.sites)
        return bool(self.in_flight)

    def _call_load(self, groups: Sequence[Group]) -> int:
        """The share of CALLS_AHEAD that a call uses: all of it, unless the call is known to be quick."""
        seconds = sum(self.fleet.call_seconds.get(site, QUICK_S) for site in flatten(groups))
        return 1 if seconds < QUICK_S else CALLS_AHEAD

    def _take_quarantined(self, actor: str) -> Group | None:
        """Remove and return the next quarantined group that `actor` may run."""
        site_to_actor, queues = self.pool.site_to_actor, self.open_queues[actor]
        group = next((each for each in self.quarantined_groups if site_to_actor[each[0]] in queues), None)
        if group is not None:
            self.quarantined_groups.remove(group)
        return group

    def _send_call(self, actor: str, groups: list[Group], quarantined: bool = False) -> None:
        sites = flatten(groups)
        arguments = None if self.per_site is None else {site: self.per_site[site] for site in sites}
        client_states = (self.fleet.client_states.held.get(site) for site in sites)
        handle = self.pool.handle(actor)
        if all(sent.actor != actor for sent in self.in_flight.values()):
            self.last_response_at[actor] = time.monotonic()
        self.pool.move_sites(sites, actor)
        refs: list[Any] = handle.execute.options(num_returns=3 * len(sites), name=self._call_title(sites)).remote(
            self.request, groups, arguments, *client_states
        )
        self.in_flight[refs[0]] = InFlightCall(actor, handle, groups, refs, time.monotonic(), quarantined)

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
        """Start the actor again, and quarantine all groups that it had; one with too many losses fails instead."""
        behind = [ref for ref, other in self.in_flight.items() if other.handle is sent.handle]
        groups = [*sent.groups, *(group for ref in behind for group in self.in_flight.pop(ref).groups)]
        self.losses.update(groups)
        self.pool.replace(sent.actor)
        seconds = time.monotonic() - sent.start
        if sent.quarantined and self.losses[groups[0]] >= MAX_LOSSES:
            result: CallResult[Any] = CallResult(
                None, failure=Failure(_exhausted_message(groups[0], loss, cause), ""), seconds=seconds
            )
            self.exhausted_sites.extend((site, result) for site in groups[0])
            return
        self.quarantined_groups.extend(groups)
        number, phase = self.fleet.accounting.number, self.fleet.progress.phase
        event = FailureEvent(number, phase, tuple(flatten(groups)), sent.actor, cause, FailureAction.RETRIED, seconds)
        self.fleet.accounting.failures.append(event)

    def _no_actor_message(self) -> str:
        left = len(flatten([*self.quarantined_groups, *(group for queue in self.queues.values() for group in queue)]))
        return (
            f"round {self.fleet.accounting.number}: no client actor has restarted for "
            f"{self.fleet.no_actor_timeout_s:g} s, and {left} sites wait; the cluster has no free resources for one. "
            "When it has, `raysim resume` continues from the last checkpoint"
        )


def _exhausted_message(group: Group, loss: ActorLoss, cause: str) -> str:
    only = "this site" if len(group) == 1 else f"the {len(group)} sites that train in one batch (resources.batch_sites)"
    return f"the actor that ran only {only} was lost, {MAX_LOSSES} losses in all; last cause: {cause}. {loss.value}"


def flatten(groups: Iterable[Group]) -> list[str]:
    """The sites of `groups`."""
    return [site for group in groups for site in group]


def take_batch(queue: deque[Group], seconds: Mapping[str, float], last: bool = False) -> list[Group]:
    """Take the next groups of a queue for one call, or its `last` groups, which are the cheapest.

    Returns one group, or as many quick ones (by the `seconds` of their last calls) as add up to BATCH_S, or none.
    """
    take = deque[Group].pop if last else deque[Group].popleft
    groups: list[Group] = []
    most, work = len(queue) / QUEUE_SHARE, 0.0
    while queue and (not groups or (len(groups) < most and work < BATCH_S)):
        groups.append(take(queue))
        work += sum(seconds.get(site, BATCH_S) for site in groups[-1])
    return groups
