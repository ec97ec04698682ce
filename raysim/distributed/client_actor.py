"""The client actor: a site executor in a separate process, with a share of CPUs and of a GPU."""

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
from raysim.distributed.ray_compat import end_at_sigterm
from raysim.federation.plan import Plan
from raysim.federation.site_executor import (
    NOT_GIVEN,
    CallKey,
    CallResult,
    Client,
    SiteArguments,
    SiteExecutor,
    torch_threads,
)

P = TypeVar("P")
INLINE_BYTES = 128 * 1024  # Ray keeps smaller objects in the caller's memory instead of the object store


class _InStore:
    """Placeholder for a payload that is returned as a separate object."""

    def __reduce__(self) -> str:
        return "IN_STORE"


IN_STORE: Any = _InStore()


@dataclass(frozen=True)
class StoredPayload:
    """A payload that the server keeps as a reference, padded to a size that Ray keeps in the object store."""

    payload: Any
    padding: Any


class ClientActor:
    """Executes calls at the sites of a run in a separate process. `title` is shown on Ray's dashboard."""

    def __init__(self, name: str, title: str, plan: list[Any], cpus: float, gpus: float) -> None:
        end_at_sigterm()
        self.name, self.title, self.cpus, self.gpus = name, title, cpus, gpus
        self.memory_purger = JemallocPurger()
        self.device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))
        self.memory_gauge = MemoryGauge(name, self.device == "cuda")
        self.renew(plan)

    def renew(self, plan: list[Any]) -> None:
        """Execute calls of this run from now on. `plan` is a list with its reference, which Ray does not resolve."""
        run: Plan = ray.get(plan[0])
        self.versions, self.data_paths = run.versions, run.data_paths
        self.executor = SiteExecutor(run.task, run.config.seed, self.device, torch_threads(self.cpus), run.faults)

    def __repr__(self) -> str:
        return self.title

    def place(self) -> ActorPlacement:
        """The placement of this actor; returns when it is ready. Raises NodeError if its node is unfit for the run."""
        if fault := node_probe.incompatibility(self.versions, self.data_paths):
            raise NodeError(f"node {ray.util.get_node_ip_address()} {fault}")
        return ActorPlacement(
            actor=self.name,
            title=self.title,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            cpus=self.cpus,
            gpus=self.gpus,
            gpu_ids=[str(i) for i in ray.get_gpu_ids()],
            device=str(self.executor.device),
            threads=torch.get_num_threads(),
        )

    def execute(
        self,
        request: tuple[Client[P], Any, CallKey, bool],
        groups: Sequence[Sequence[str]],
        per_site: Mapping[str, Any] | None,
        *client_states: Any,
    ) -> list[Any]:
        """The results of the groups' sites, then their client states, then their payloads that are private or large.

        Each is a separate object, because Ray returns small objects directly but puts a long list in the object store.
        """
        client, broadcast, call, private = request
        results, kept_states, stored = list[CallResult[Any]](), list[Any](), list[StoredPayload | None]()
        remaining = iter(client_states)
        for group in groups:
            arguments = [
                SiteArguments(site, NOT_GIVEN if per_site is None else per_site[site], next(remaining))
                for site in group
            ]
            for result in self.executor.execute_group(client, arguments, call, broadcast):
                large = private or result.size > INLINE_BYTES
                kept_states.append(result.client_state)
                stored.append(_store_payload(result.payload) if large else None)
                new_state = result.client_state if result.client_state is UNCHANGED else None
                results.append(replace(result, client_state=new_state, payload=IN_STORE if large else result.payload))
            self.memory_purger.settle()
            self.memory_gauge.update()
        return [*results, *kept_states, *stored]


def _store_payload(payload: Any) -> StoredPayload:
    return StoredPayload(payload, np.zeros(max(0, INLINE_BYTES - nbytes(payload)), np.uint8))
