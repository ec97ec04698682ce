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
        self, order: tuple[Client[P], Any, Call, bool], site: str, own: Any, memory: Any
    ) -> tuple[Answer[Any], Any, Any]:
        """The answer for the server, and apart from it what it does not look at: the memory, a private payload."""
        client, shared, call, private = order
        given = NOTHING if own is None else own[0]
        answer: Answer[Any] = self.worker.play(client, site, call, shared, given, memory)
        kept = answer.memory
        if kept is not KEEP:
            answer = replace(answer, memory=None)
        if not private:
            return answer, kept, None
        padding = np.zeros(max(0, INLINE - nbytes(answer.payload)), np.uint8)
        return replace(answer, payload=None), kept, Sealed(answer.payload, padding)


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
        running: dict[Any, tuple[str, str, Any, Any]] = {}
        busy = dict.fromkeys(self.actors, 0)
        while True:
            for actor in self.actors:
                while busy[actor] < AHEAD and (site := _next(waiting, actor)) is not None:
                    given = None if own is None else (own[site],)
                    answer, kept, payload = (
                        self.actors[actor]
                        .play.options(num_returns=3)
                        .remote(order, site, given, self.ledger.memories.get(site))
                    )
                    running[answer] = site, actor, kept, payload
                    busy[actor] += 1
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for ref in ready:
                site, actor, kept, payload = running.pop(ref)
                busy[actor] -= 1
                yield site, _received(ref, kept, payload if private else None, actor, site)

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


def _next(waiting: dict[str, deque[str]], actor: str) -> str | None:
    """The next site for `actor`: its own costliest, or else the cheapest of the actor with the most to do."""
    if waiting[actor]:
        return waiting[actor].popleft()
    fullest = max(waiting.values(), key=len)
    return fullest.pop() if fullest else None


def _received(ref: Any, kept: Any, payload: Any, actor: str, site: str) -> Answer[Any]:
    try:
        answer: Answer[Any] = ray.get(ref)
    except RayError as error:
        raise RunError(f"{actor} was lost while it played site '{site}': {type(error).__name__}: {error}") from error
    if answer.memory is not KEEP and answer.failure is None:
        answer = replace(answer, memory=kept)
    return answer if payload is None else replace(answer, payload=payload)
