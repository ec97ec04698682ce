"""The fleet on Ray: client actors play the sites, and another takes the place of one that is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayError

from raysim.client import Place
from raysim.dispatch import Dispatch
from raysim.errors import LostError
from raysim.fleet import BaseFleet
from raysim.types import Task
from raysim.worker import Answer, Call, Client

P = TypeVar("P")


class RayFleet(BaseFleet):
    """Sites on client actors. A site stays with the actor that has its data open, unless another is idle.

    `start` makes a client actor of a name; it is called for one that was lost.
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
    ) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.actors, self.home, self.start = dict(actors), dict(home), start
        self.starting: dict[Any, str] = {}  # actors that are not up yet, by what tells that they are
        self.places: dict[str, Place] = {}

    def up(self) -> list[str]:
        """The actors that can be given work."""
        down = set(self.starting.values())
        return [actor for actor in self.actors if actor not in down]

    def replace(self, actor: str) -> None:
        """Start `actor` anew; it is given no work until it is up, for there may be no room for it any more."""
        ray.kill(self.actors[actor])
        self.actors[actor] = self.start(actor)
        self.starting[self.actors[actor].place.remote()] = actor

    def started(self, ref: Any) -> None:
        """An actor that `ref` tells of is up, or was lost again before it was."""
        actor = self.starting.pop(ref)
        try:
            self.places[actor] = ray.get(ref)
        except RayError:
            self.replace(actor)

    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        order = ray.put((client, shared, call, private))
        yield from Dispatch(self, order, own).answers()

    def queues(self) -> dict[str, deque[str]]:
        """The sites that each actor is to play, the costliest first."""
        waiting: dict[str, deque[str]] = {actor: deque() for actor in self.actors}
        for site in sorted(self.sites, key=self._costs().__getitem__, reverse=True):
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
        self.ledger.memories.update({site: ray.put(memory) for site, memory in memories.items()})


def _got(held: Any) -> Any:
    try:
        return ray.get(held) if isinstance(held, ray.ObjectRef) else held
    except ObjectLostError as error:
        raise LostError(f"an object was lost with its node: {str(error).splitlines()[0]}") from error


def assign(costs: Mapping[str, float], actors: Sequence[str]) -> dict[str, str]:
    """Each site's actor: the costliest site first, each to the actor with the least to do so far."""
    load = dict.fromkeys(actors, 0.0)
    home = {}
    for site in sorted(costs, key=lambda site: (-costs[site], site)):
        home[site] = min(actors, key=lambda actor: load[actor])
        load[home[site]] += costs[site]
    return home
