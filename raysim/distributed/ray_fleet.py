"""The fleet on Ray: client actors play the sites, and another takes the place of one that is lost."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.contracts import Task
from raysim.core.errors import LostError, NodeError, RaysimError, RunError
from raysim.core.events import Place
from raysim.core.fault_injection import Chaos
from raysim.core.results import Incident
from raysim.distributed.dispatcher import TRIES, Dispatch
from raysim.distributed.load_balancing import assign, settled
from raysim.distributed.ray_errors import no_room, told
from raysim.federation.fleet import BaseFleet
from raysim.federation.site_executor import Answer, Call, Client

P = TypeVar("P")
STRIKE = 60.0  # seconds for chaos to start a process where it strikes
PATIENCE = 120.0  # seconds for an actor to come back, while no other can work, to a cluster that has room for it


class RayFleet(BaseFleet):
    """Sites on client actors. A site stays with the actor that has its data open, unless another is idle.

    `start` makes a client actor of a name; it is called for one that was lost. `alone` are the actors that play a
    single site, by site: nobody else plays it, and they play nothing else. `patience` is how many seconds a round
    waits for an actor when none can work.
    """

    def __init__(
        self,
        task: Task,
        actors: Mapping[str, Any],
        home: Mapping[str, str],
        start: Callable[[str], Any],
        *,
        seed: int,
        rounds: int,
        chaos: Chaos | None = None,
        alone: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.alone, self.patience = dict(alone or {}), patience
        self.kills = dict(chaos.kills) if chaos else {}
        self.actors, self.home, self.start = dict(actors), dict(home), start
        self.starting: dict[Any, str] = {}  # actors that are not up yet, by what tells that they are
        self.failed: dict[str, int] = {}  # times in a row that an actor has not come up
        self.places: dict[str, Place] = {}
        self.late: set[str] = set()  # actors that have not been up yet, for their nodes are still to come

    def up(self) -> list[str]:
        """The actors that can be given work."""
        down = set(self.starting.values())
        return [actor for actor in self.actors if actor not in down]

    def wait_for(self, later: Mapping[Any, str], costs: Mapping[str, float]) -> None:
        """Go on without these actors, by what tells that they are up, until they are."""
        self.starting.update(later)
        self.late = set(later.values())
        there = [actor for actor in self.actors if actor not in self.late or actor in self.alone.values()]
        if set(there) - set(self.alone.values()):
            self.home = assign(costs, there, self.alone)

    def replace(self, actor: str) -> None:
        """Start `actor` anew; it is given no work until it is up, for there may be no room for it any more."""
        self.places.pop(actor, None)
        self.ledger.moved += 1
        ray.kill(self.actors[actor])
        self.actors[actor] = self.start(actor)
        self.starting[self.actors[actor].place.remote()] = actor

    def started(self, ref: Any) -> None:
        """An actor that `ref` tells of is up, or was lost again before it was."""
        actor = self.starting.pop(ref)
        try:
            self.places[actor] = ray.get(ref)
            self.late.discard(actor)
            self.ledger.moved += 1
            self.failed.pop(actor, None)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, RaysimError):
                self.leave(actor, error.cause)
                return
            self.failed[actor] = self.failed.get(actor, 0) + 1
            if self.failed[actor] == TRIES:
                failure = RunError(
                    f"{actor} was lost and cannot be started anew: {told(error)}. When that is mended, `raysim resume` "
                    "goes on from the last checkpoint"
                )
                failure.remote = str(error)
                raise failure from error
            self.replace(actor)

    def leave(self, actor: str, error: RaysimError) -> None:
        """Go on without an actor whose node cannot serve it. Raises the error if its sites have no other."""
        alone = set(self.alone.values())
        others = sorted(self.actors.keys() - alone - {actor}, key=lambda name: (name in self.late, name))
        if not isinstance(error, NodeError) or actor in alone or not others:
            raise error
        del self.actors[actor]  # its place stays this run's, so that nothing else is put there
        self.late.discard(actor)
        self.ledger.moved += 1
        self.home.update({site: others[0] for site, name in self.home.items() if name == actor})
        number, phase = self.ledger.round + 1, self.ledger.progress.phase
        self.ledger.incidents.append(Incident(number, phase, (), actor, str(error), "went on without it"))

    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        order = _put((client, shared, call, private))
        for site, answer in Dispatch(self, order, own).answers():
            self._make_trouble(call.round + 1)
            yield site, answer

    def _make_trouble(self, number: int) -> None:
        """Kill what chaos asks for in this round; what is not up yet, in the next."""
        struck: list[Place] = []
        for victim in self.kills.pop(number, ()):
            place = self._kill(victim, struck)
            if place is None:
                self.kills[number + 1] = (*self.kills.get(number + 1, ()), victim)
            else:
                struck.append(place)

    def others(self) -> list[Place]:
        """The actors on other nodes than this process's and the head's, with which the cluster would go."""
        heads = {node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
        spared = {ray.get_runtime_context().get_node_id(), *heads}
        up = (self.places[actor] for actor in self.up() if actor in self.places)
        return [place for place in up if place.node not in spared]

    def _kill(self, victim: str, struck: Sequence[Place]) -> Place | None:
        """Really kill the last client actor, or the last node that has one and not the server.

        Not where something was `struck` just now. None if there is none to kill.
        """
        if victim == "node":
            nodes = {place.node for place in struck}
            places = [place for place in self.others() if place.node not in nodes]
        else:
            places = [self.places[actor] for actor in self.up() if self.places.get(actor) not in (None, *struck)]
        if not places:
            return None
        if victim == "client" and places[-1].node == ray.get_runtime_context().get_node_id():
            os.kill(places[-1].pid, signal.SIGKILL)
            return places[-1]
        there = NodeAffinitySchedulingStrategy(places[-1].node, soft=False)
        remote: Any = ray.remote(_strike)
        pid = 0 if victim == "node" else places[-1].pid
        blow = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
        with suppress(RayError):  # the death of its own node: it has struck
            ray.get(blow, timeout=STRIKE)
        return places[-1]

    def queues(self) -> dict[str, deque[str]]:
        """The sites that each actor is to play, the costliest first."""
        waiting: dict[str, deque[str]] = {actor: deque() for actor in self.actors}
        costs = self._costs()
        shared = [actor for actor in self.actors if actor not in self.late]
        if all(self.home[site] in shared for site in self.sites if site not in self.alone):
            self.home.update(settled(self.home, costs, shared, self.alone))
        for site in sorted(self.sites, key=costs.__getitem__, reverse=True):
            waiting[self.home[site]].append(site)
        return waiting

    def _costs(self) -> dict[str, float]:
        """Seconds of each site's last call; where it has had none, by its training examples beside the others'."""
        seconds = self.ledger.seconds
        size = {site: 1.0 + self.task.sizes[site].get("train", 0) for site in self.sites}
        timed = [site for site in self.sites if site in seconds]
        rate = sum(seconds[site] for site in timed) / sum(size[site] for site in timed) if timed else 1.0
        return {site: seconds.get(site, size[site] * rate) for site in self.sites}

    @staticmethod
    def _fetch(held: Any) -> Any:
        return _got(held).payload if isinstance(held, ray.ObjectRef) else held

    def memory(self, site: str) -> Any:
        return _got(self.ledger.memories.get(site))

    def remember(self, memories: Mapping[str, Any]) -> None:
        self.ledger.memories.update({site: _put(memory) for site, memory in memories.items()})


def _strike(pid: int) -> None:
    os.kill(pid or int(os.environ["RAY_RAYLET_PID"]), signal.SIGKILL)


def _put(value: Any) -> Any:
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise no_room(error) from error


def _got(held: Any) -> Any:
    try:
        return ray.get(held) if isinstance(held, ray.ObjectRef) else held
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise no_room(error) from error
    except ObjectLostError as error:
        raise LostError(f"an object was lost with its node: {str(error).splitlines()[0]}") from error
