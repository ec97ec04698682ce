"""One call at many sites: which client actor has which, who waits, and what is done when an actor is lost."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RaySystemError, RayTaskError

from raysim.core.contracts import KEEP
from raysim.core.errors import LostError, RunError
from raysim.core.formatting import listed
from raysim.core.results import Incident
from raysim.distributed.client_actor import APART
from raysim.distributed.ray_errors import no_room, told
from raysim.federation.site_executor import Answer, Failure

if TYPE_CHECKING:
    from raysim.distributed.ray_fleet import RayFleet

AHEAD = 2  # quick calls given to an actor at a time: the second waits there, so the actor never waits for the server
QUICK = 1.0  # seconds of work up to which a call is quick: what waits behind a longer one, an idle actor might take
BUNDLE = 0.5  # seconds of work that make a call worth while: Ray spends about 0.002 s on a call, whatever it carries
SHARE = 1.5  # a call takes at most two thirds of what waits for an actor, so that all are done at the same time
TRIES = 3  # losses of an actor after which what it played, and not the machine, is to blame


@dataclass(frozen=True)
class Sent:
    """A call under way: `handle` tells the actor from the one that has taken its place since."""

    actor: str
    handle: Any
    sites: list[str]
    refs: list[Any]
    start: float
    alone: bool


class Dispatch:
    """Plays a client function at all sites of a fleet; each site once, or again if the actor was lost meanwhile."""

    def __init__(self, fleet: RayFleet, order: Any, own: Mapping[str, Any] | None) -> None:
        self.fleet, self.order, self.own = fleet, order, own
        self.waiting = fleet.queues()
        together = {actor: queue for actor, queue in self.waiting.items() if actor not in fleet.alone.values()}
        # Whose sites each actor may play: those of all that share, or its single one.
        self.pools = {actor: together if actor in together else {actor: self.waiting[actor]} for actor in self.waiting}
        self.heard: dict[str, float] = {}  # when each actor last answered, or was given work when it had none
        self.running: dict[Any, Sent] = {}
        self.tries: Counter[str] = Counter()
        self.hopeless: deque[tuple[str, Answer[Any]]] = deque()  # sites that have no try left
        self.suspects: deque[str] = deque()  # were with an actor that was lost: each plays alone, so as to tell which

    def answers(self) -> Iterator[tuple[str, Answer[Any]]]:
        """Each site's answer as it comes.

        Raises LostError where something that lay on a lost node is needed, RunError for what trying again cannot mend.
        """
        idle_since = time.monotonic()
        while self._send() or self.suspects or self.hopeless or any(self.waiting.values()):
            while self.hopeless:
                yield self.hopeless.popleft()
            # An actor that is up before answers, of which in quick rounds there is always one.
            expected = [*self.fleet.starting, *self.running]
            ready, _ = ray.wait(expected, num_returns=1, timeout=1.0) if expected else ([], [])
            self.fleet.check_stop()
            if self.running:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.fleet.patience:
                raise RunError(self._nobody())
            for ref in ready:
                if ref in self.fleet.starting:
                    self.fleet.started(ref)
                elif ref in self.running:  # else its actor was lost with a call before it
                    yield from self._received(self.running.pop(ref))
            self._hurry()

    def _send(self) -> bool:
        """Give every actor that is up as much as it may have; whether anything is under way."""
        busy: Counter[str] = Counter()
        for sent in self.running.values():
            busy[sent.actor] += AHEAD if sent.alone else self._load(sent.sites)
        for actor in self.fleet.up():
            suspect = None if busy[actor] else self._suspect(actor)
            if suspect is not None:
                self._give(actor, [suspect], alone=True)
                busy[actor] = AHEAD
            while busy[actor] < AHEAD and (sites := bundle(self.waiting[actor], self.fleet.ledger.seconds)):
                self._give(actor, sites)
                busy[actor] += self._load(sites)
        for actor in self.fleet.up():  # now that all have of their own what they can take
            if not busy[actor]:
                fullest = max(self.pools[actor].values(), key=len)
                if sites := bundle(fullest, self.fleet.ledger.seconds, last=True):
                    self._give(actor, sites)
        self.fleet.ledger.progress.playing = tuple(site for sent in self.running.values() for site in sent.sites)
        return bool(self.running)

    def _load(self, sites: Sequence[str]) -> int:
        """How much of AHEAD a call takes: all of it, unless it is known to be quick."""
        return 1 if sum(self.fleet.ledger.seconds.get(site, QUICK) for site in sites) < QUICK else AHEAD

    def _suspect(self, actor: str) -> str | None:
        """Takes out the next suspect that `actor` may play."""
        site = next((s for s in self.suspects if self.fleet.home[s] in self.pools[actor]), None)
        if site is not None:
            self.suspects.remove(site)
        return site

    def _give(self, actor: str, sites: list[str], alone: bool = False) -> None:
        given = None if self.own is None else {site: self.own[site] for site in sites}
        memories = (self.fleet.ledger.memories.get(site) for site in sites)
        handle = self.fleet.actors[actor]
        if not any(sent.actor == actor for sent in self.running.values()):
            self.heard[actor] = time.monotonic()
        self.fleet.home.update(dict.fromkeys(sites, actor))  # where their data are open from now on
        refs: list[Any] = handle.play.options(num_returns=3 * len(sites), name=self._title(sites)).remote(
            self.order, sites, given, *memories
        )
        self.running[refs[0]] = Sent(actor, handle, sites, refs, time.monotonic(), alone)

    def _title(self, sites: Sequence[str]) -> str:
        """What the dashboard calls a call."""
        more = f" +{len(sites) - 3}" if len(sites) > 3 else ""
        return f"round {self.fleet.ledger.round + 1}, {self.fleet.ledger.progress.phase}: {', '.join(sites[:3])}{more}"

    def _received(self, sent: Sent) -> Iterator[tuple[str, Answer[Any]]]:
        count = len(sent.sites)
        self.heard[sent.actor] = time.monotonic()
        try:
            answers: list[Answer[Any]] = ray.get(sent.refs[:count])
        except RayError as error:
            self._mend(sent, error)
            return
        kept, apart = sent.refs[count : 2 * count], sent.refs[2 * count :]
        for i, (site, answer) in enumerate(zip(sent.sites, answers, strict=True)):
            memory = KEEP if answer.memory is KEEP else kept[i]
            payload = apart[i] if answer.payload is APART else answer.payload
            yield site, replace(answer, memory=memory, payload=payload)

    def _mend(self, sent: Sent, error: RayError) -> None:
        """Have the sites of a lost actor played again, by whoever is there. Raises RunError where that cannot help."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, LostError | ObjectLostError):
            raise LostError(f"round {self.fleet.ledger.round + 1}: {told(cause)}") from error
        if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
            raise no_room(cause) from error
        if isinstance(error, RayTaskError | RaySystemError):  # an exception there; a reply that cannot be read here
            number = self.fleet.ledger.round + 1
            failed = RunError(f"round {number}: {sent.actor} failed at {_named(sent.sites)}: {told(cause)}")
            failed.remote = str(error)
            raise failed from error
        self._lose(sent, told(error))

    def _hurry(self) -> None:
        """Give up the actors that have not answered for too long: they hang, or what they do never ends."""
        now, patience = time.monotonic(), self.fleet.ledger.site_timeout
        first = {sent.actor: ref for ref, sent in reversed(self.running.items())}  # what each is at; the rest waits
        for actor, ref in first.items():
            if now - self.heard[actor] > patience * len(self.running[ref].sites):
                self._lose(self.running.pop(ref), f"no answer for {patience:g} s (site_timeout)")

    def _lose(self, sent: Sent, cause: str) -> None:
        """Start the actor anew, and have what was with it played again."""
        behind = [ref for ref, other in self.running.items() if other.handle is sent.handle]
        sites = [*sent.sites, *(site for ref in behind for site in self.running.pop(ref).sites)]
        self.tries.update(sites)
        self.fleet.replace(sent.actor)
        seconds = time.monotonic() - sent.start
        if sent.alone and self.tries[sites[0]] >= TRIES:
            self.hopeless.append((sites[0], Answer(None, failure=Failure(_given_up(cause), ""), seconds=seconds)))
            return
        self.suspects.extend(sites)
        ledger = self.fleet.ledger
        ledger.incidents.append(
            Incident(ledger.round + 1, ledger.progress.phase, tuple(sites), sent.actor, cause, "run again", seconds)
        )

    def _nobody(self) -> str:
        left = len(self.suspects) + sum(map(len, self.waiting.values()))
        return (
            f"round {self.fleet.ledger.round + 1}: no client actor has come back for {self.fleet.patience:g} s, and "
            f"{left} sites wait; the cluster has no room for one. When it has, `raysim resume` goes on from the last "
            "checkpoint"
        )


def _given_up(cause: str) -> str:
    long = "site_timeout" in cause
    cure = "If memory ran out, take a smaller task.batch_size or fewer actors (resources.clients)"
    cure = "If the work takes that long, give a larger site_timeout" if long else cure
    return f"the actor that played it alone was lost, {TRIES} losses in all, last because: {cause}. {cure}"


def _named(sites: Sequence[str]) -> str:
    return listed([f"'{site}'" for site in sites])


def bundle(queue: deque[str], seconds: Mapping[str, float], last: bool = False) -> list[str]:
    """Takes out the next sites of a queue, or its `last` ones, which are the cheapest.

    One site, or as many quick ones (by the `seconds` of their last calls) as make a call worth while, or none.
    """
    take = deque[str].pop if last else deque[str].popleft
    sites: list[str] = []
    most, carried = len(queue) / SHARE, 0.0
    while queue and (not sites or (len(sites) < most and carried < BUNDLE)):
        sites.append(take(queue))
        carried += seconds.get(sites[-1], BUNDLE)
    return sites
