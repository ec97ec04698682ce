"""The client actor: a worker with a name and its share of CPUs and of a GPU, for Ray to run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from raysim.core.contracts import UNCHANGED
from raysim.core.errors import NodeError
from raysim.core.events import ActorPlacement
from raysim.core.pytree import nbytes
from raysim.distributed import node_probe
from raysim.distributed.jemalloc import JemallocPurger
from raysim.distributed.prometheus import MemoryGauge
from raysim.federation.plan import Plan
from raysim.federation.site_executor import NOT_GIVEN, CallKey, CallResult, Client, SiteExecutor, torch_threads

P = TypeVar("P")
INLINE_BYTES = 128 * 1024  # a smaller object would be kept in the caller's own memory instead of the object store


class _InStore:
    """Stands in an answer for a payload that comes as an object of its own."""

    def __reduce__(self) -> str:
        return "IN_STORE"


IN_STORE: Any = _InStore()


@dataclass(frozen=True)
class StoredPayload:
    """A payload that the server keeps as a reference, padded to a size that Ray keeps in the object store."""

    payload: Any
    padding: Any


class ClientActor:
    """A worker with a name, for Ray to run."""

    def __init__(self, name: str, title: str, plan: list[Any], cpus: float, gpus: float) -> None:
        self.name, self.title, self.cpus, self.gpus = name, title, cpus, gpus
        self.allocator = JemallocPurger()
        self.device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))
        self.memory = MemoryGauge(name, self.device == "cuda")
        self.renew(plan)

    def renew(self, plan: list[Any]) -> None:
        """Play the sites of this run from now on."""
        run: Plan = ray.get(plan[0])
        self.versions, self.data_paths = run.versions, run.data_paths
        self.executor = SiteExecutor(run.task, run.config.seed, self.device, torch_threads(self.cpus), run.faults)

    def __repr__(self) -> str:
        return self.title

    def place(self) -> ActorPlacement:
        """Where this actor is; answers once it is ready. Raises NodeError if its node lacks what the run needs."""
        if wrong := node_probe.incompatibility(self.versions, self.data_paths):
            raise NodeError(f"node {ray.util.get_node_ip_address()} {wrong}")
        context = ray.get_runtime_context()
        gpus = [str(i) for i in ray.get_gpu_ids()]
        return ActorPlacement(
            self.name,
            self.title,
            context.get_node_id(),
            os.getpid(),
            self.cpus,
            self.gpus,
            gpus,
            str(self.executor.device),
            torch.get_num_threads(),
        )

    def execute(
        self,
        order: tuple[Client[P], Any, CallKey, bool],
        sites: Sequence[str],
        per_site: Mapping[str, Any] | None,
        *client_states: Any,
    ) -> list[Any]:
        """The answers, then what the server only passes on: the memories, and payloads that are `private` or large.

        All one by one: Ray brings small objects along with its own message, but would keep a long list apart.
        """
        client, broadcast, call, private = order
        answers, kept, apart = list[CallResult[Any]](), list[Any](), list[StoredPayload | None]()
        for site, client_state in zip(sites, client_states, strict=True):
            given = NOT_GIVEN if per_site is None else per_site[site]
            answer: CallResult[Any] = self.executor.execute(client, site, call, broadcast, given, client_state)
            large = private or answer.size > INLINE_BYTES
            kept.append(answer.client_state)
            apart.append(_store_payload(answer.payload) if large else None)
            client_state = answer.client_state if answer.client_state is UNCHANGED else None
            answers.append(replace(answer, client_state=client_state, payload=IN_STORE if large else answer.payload))
            self.allocator.settle()
            self.memory.tell()
        return [*answers, *kept, *apart]


def _store_payload(payload: Any) -> StoredPayload:
    return StoredPayload(payload, np.zeros(max(0, INLINE_BYTES - nbytes(payload)), np.uint8))
