"""The fleet on Ray: client actors that play sites, each with its share of CPUs and of a GPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from raysim.errors import RunError
from raysim.fleet import BaseFleet
from raysim.tree import nbytes
from raysim.types import KEEP, Task
from raysim.worker import NOTHING, Answer, Call, Client, Worker

P = TypeVar("P")
AHEAD = 2  # calls given to an actor at a time: the second waits there, so the actor never waits for the server
BUNDLE = 0.5  # seconds of work that make a call worth while: Ray spends about 0.002 s on a call, whatever it carries
SHARE = 2  # a call takes at most half of what waits for an actor, so that all are done at the same time
INLINE = 128 * 1024  # a smaller object would be kept in the caller's own memory instead of the object store


@dataclass(frozen=True)
class Place:
    """Where a client actor is: for placement.json."""

    actor: str
    title: str
    node: str
    pid: int
    cpus: float
    gpus: float
    gpu_ids: list[str]
    device: str
    threads: int


@dataclass(frozen=True)
class Sealed:
    """A payload from site to site, padded to a size that Ray keeps in the object store, out of the server."""

    payload: Any
    padding: Any


class ClientActor:
    """A worker with a name, for Ray to run."""

    def __init__(self, name: str, title: str, plan: list[Any], cpus: float, gpus: float) -> None:
        self.name, self.title, self.cpus, self.gpus = name, title, cpus, gpus
        prepared = ray.get(plan[0])
        device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))
        self.worker = Worker(prepared.task, prepared.seed, device, threads=max(1, int(cpus)))

    def __repr__(self) -> str:
        return self.title

    def place(self) -> Place:
        """Where this actor is; answers once it is ready."""
        context = ray.get_runtime_context()
        gpus = [str(i) for i in ray.get_gpu_ids()]
        return Place(
            self.name,
            self.title,
            context.get_node_id(),
            os.getpid(),
            self.cpus,
            self.gpus,
            gpus,
            str(self.worker.device),
            torch.get_num_threads(),
        )

    def play(
        self,
        order: tuple[Client[P], Any, Call, bool],
        sites: Sequence[str],
        own: Mapping[str, Any] | None,
        *memories: Any,
    ) -> list[Any]:
        """The answers, for the server, and apart from them what only sites read: memories and, if `private`, payloads.

        All one by one: Ray brings small objects along with its own message, but would keep a long list apart.
        """
        client, shared, call, private = order
        answers, kept, sealed = list[Answer[Any]](), list[Any](), list[Any]()
        for site, memory in zip(sites, memories, strict=True):
            given = NOTHING if own is None else own[site]
            answer: Answer[Any] = self.worker.play(client, site, call, shared, given, memory)
            kept.append(answer.memory)
            if private:
                sealed.append(_sealed(answer.payload))
                answer = replace(answer, payload=None)
            answers.append(answer if answer.memory is KEEP else replace(answer, memory=None))
        return [*answers, *kept, *sealed]


def _sealed(payload: Any) -> Sealed:
    return Sealed(payload, np.zeros(max(0, INLINE - nbytes(payload)), np.uint8))


class RayFleet(BaseFleet):
    """Sites on client actors. A site stays with the actor that has its data open, unless another is idle."""

    def __init__(
        self, task: Task, actors: Mapping[str, Any], home: Mapping[str, str], *, seed: int, rounds: int
    ) -> None:
        super().__init__(task, seed=seed, rounds=rounds)
        self.actors, self.home = dict(actors), dict(home)

    def _cost(self, site: str) -> float:
        """Seconds of the site's last call; before the first, its training examples, which come in no one's way."""
        return self.ledger.seconds.get(site, float(self.task.sizes[site].get("train", 0)))

    def _play(
        self, client: Client[P], shared: Any, own: Mapping[str, Any] | None, call: Call, private: bool
    ) -> Iterator[tuple[str, Answer[P]]]:
        order = ray.put((client, shared, call, private))
        waiting = self._queues()
        running: dict[Any, tuple[str, list[str], list[Any]]] = {}
        busy = dict.fromkeys(self.actors, 0)
        while True:
            for actor in self.actors:
                while busy[actor] < AHEAD and (sites := bundle(waiting, actor, self.ledger.seconds)):
                    refs = self._send(actor, order, sites, own, private)
                    running[refs[0]] = actor, sites, refs
                    busy[actor] += 1
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            self.check_stop()
            for ref in ready:
                actor, sites, refs = running.pop(ref)
                busy[actor] -= 1
                yield from _received(actor, sites, refs)

    def _send(
        self, actor: str, order: Any, sites: Sequence[str], own: Mapping[str, Any] | None, private: bool
    ) -> list[Any]:
        given = None if own is None else {site: own[site] for site in sites}
        memories = (self.ledger.memories.get(site) for site in sites)
        play = self.actors[actor].play.options(num_returns=len(sites) * (3 if private else 2))
        refs: list[Any] = play.remote(order, sites, given, *memories)
        return refs

    def _queues(self) -> dict[str, deque[str]]:
        waiting: dict[str, deque[str]] = {actor: deque() for actor in self.actors}
        for site in sorted(self.sites, key=self._cost, reverse=True):
            waiting[self.home[site]].append(site)
        return waiting

    @staticmethod
    def _fetch(held: Any) -> Any:
        return ray.get(held).payload

    def memory(self, site: str) -> Any:
        held = self.ledger.memories.get(site)
        return ray.get(held) if isinstance(held, ray.ObjectRef) else held

    def remember(self, memories: Mapping[str, Any]) -> None:
        self.ledger.memories.update({site: ray.put(memory) for site, memory in memories.items()})


def assign(costs: Mapping[str, float], actors: Sequence[str]) -> dict[str, str]:
    """Each site's actor: the costliest site first, each to the actor with the least to do so far."""
    load = dict.fromkeys(actors, 0.0)
    home = {}
    for site in sorted(costs, key=lambda site: (-costs[site], site)):
        home[site] = min(actors, key=lambda actor: load[actor])
        load[home[site]] += costs[site]
    return home


def bundle(waiting: Mapping[str, deque[str]], actor: str, seconds: Mapping[str, float]) -> list[str]:
    """Takes out the next sites for `actor`: its own costliest, or else the cheapest of the actor with the most to do.

    One site, or as many quick ones (by the `seconds` of their last calls) as make a call worth while, or none.
    """
    queue, take = waiting[actor], deque[str].popleft
    if not queue:
        queue, take = max(waiting.values(), key=len), deque[str].pop
    sites: list[str] = []
    most, carried = len(queue) / SHARE, 0.0
    while queue and (not sites or (len(sites) < most and carried < BUNDLE)):
        sites.append(take(queue))
        carried += seconds.get(sites[-1], BUNDLE)
    return sites


def _received(actor: str, sites: Sequence[str], refs: Sequence[Any]) -> Iterator[tuple[str, Answer[Any]]]:
    try:
        answers: list[Answer[Any]] = ray.get(refs[: len(sites)])
    except RayError as error:
        played = ", ".join(f"'{site}'" for site in sites)
        raise RunError(f"{actor} was lost while it played {played}: {type(error).__name__}: {error}") from error
    kept, sealed = refs[len(sites) : 2 * len(sites)], refs[2 * len(sites) :]
    for i, (site, answer) in enumerate(zip(sites, answers, strict=True)):
        memory = KEEP if answer.memory is KEEP else kept[i]
        yield site, replace(answer, memory=memory, payload=sealed[i] if sealed else answer.payload)
