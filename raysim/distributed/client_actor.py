"""The client actor: a worker with a name and its share of CPUs and of a GPU, for Ray to run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from raysim.core.contracts import KEEP
from raysim.core.errors import NodeError
from raysim.core.events import Place
from raysim.core.pytree import nbytes
from raysim.distributed import node_probe
from raysim.distributed.jemalloc import Allocator
from raysim.distributed.prometheus import Memory
from raysim.federation.site_executor import NOTHING, Answer, Call, Client, Worker, threads_of

P = TypeVar("P")
INLINE = 128 * 1024  # a smaller object would be kept in the caller's own memory instead of the object store


class _Apart:
    """Stands in an answer for a payload that comes as an object of its own."""

    def __reduce__(self) -> str:
        return "APART"


APART: Any = _Apart()


@dataclass(frozen=True)
class Sealed:
    """A payload that the server keeps as a reference, padded to a size that Ray keeps in the object store."""

    payload: Any
    padding: Any


class ClientActor:
    """A worker with a name, for Ray to run."""

    def __init__(self, name: str, title: str, plan: list[Any], cpus: float, gpus: float) -> None:
        self.name, self.title, self.cpus, self.gpus = name, title, cpus, gpus
        self.allocator = Allocator()
        self.device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))
        self.memory = Memory(name, self.device == "cuda")
        self.renew(plan)

    def renew(self, plan: list[Any]) -> None:
        """Play the sites of this run from now on."""
        run = ray.get(plan[0])
        self.versions, self.reads = run.versions, run.reads
        self.worker = Worker(run.task, run.seed, self.device, threads_of(self.cpus), run.chaos)

    def __repr__(self) -> str:
        return self.title

    def place(self) -> Place:
        """Where this actor is; answers once it is ready. Raises NodeError if its node lacks what the run needs."""
        if wrong := node_probe.lacks(self.versions, self.reads):
            raise NodeError(f"node {ray.util.get_node_ip_address()} {wrong}")
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
        """The answers, then what the server only passes on: the memories, and payloads that are `private` or large.

        All one by one: Ray brings small objects along with its own message, but would keep a long list apart.
        """
        client, shared, call, private = order
        answers, kept, apart = list[Answer[Any]](), list[Any](), list[Sealed | None]()
        for site, memory in zip(sites, memories, strict=True):
            given = NOTHING if own is None else own[site]
            answer: Answer[Any] = self.worker.play(client, site, call, shared, given, memory)
            large = private or answer.size > INLINE
            kept.append(answer.memory)
            apart.append(_sealed(answer.payload) if large else None)
            memory = answer.memory if answer.memory is KEEP else None
            answers.append(replace(answer, memory=memory, payload=APART if large else answer.payload))
            self.allocator.settle()
            self.memory.tell()
        return [*answers, *kept, *apart]


def _sealed(payload: Any) -> Sealed:
    return Sealed(payload, np.zeros(max(0, INLINE - nbytes(payload)), np.uint8))
