"""Functions and algorithms for client actors, which import them from this module. Ray is imported late."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from algorithms.fedavg import FedAvg
from raysim import Fleet, LocalFleet, Metrics, Model, Predictor, Reply, Site, Task
from raysim.config.schema import RunConfig
from raysim.federation.accounting import FleetOptions
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.tasks.synthetic import Synthetic
from tests.support import toy

if TYPE_CHECKING:
    from raysim.core.events import Event
    from raysim.core.fault_injection import FaultPlan
    from raysim.distributed.ray_fleet import RayFleet

OPENED: list[int] = []  # bytes of each payload that was unpickled in this process


class Marked:
    """A payload that is recorded in OPENED in each process that unpickles it."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    @property
    def nbytes(self) -> int:
        return int(self.content.nbytes)

    def __reduce__(self) -> tuple[Callable[..., Marked], tuple[np.ndarray]]:
        return opened, (self.content,)


def opened(content: np.ndarray) -> Marked:
    OPENED.append(content.nbytes)
    return Marked(content)


def offer(site: Site[Any], sizes: dict[str, int]) -> Reply[Marked]:
    content = np.full(sizes[site.name], ord(site.name), np.uint8)
    return Reply(Marked(content), metrics={"size": float(len(content))})


def read_all(site: Site[Any], broadcast: Any) -> Reply[list[int]]:
    found = [broadcast[name].content for name in broadcast.sites]
    copies = sum(content.flags.writeable for content in found)  # arrays in Ray's object store are read-only
    return Reply([*(int(content.sum()) for content in found), copies, len(OPENED)])


def where(site: Site[Any], model: Model) -> Reply[tuple[bool, str]]:
    return Reply((model["w"].flags.writeable, mapped_file(model)))


def mapped_file(model: Model) -> str:
    """The memory-mapped file that contains the weights `w` of `model`; empty for memory of this process."""
    address = model["w"].__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line.partition("/")[2]
    return ""


def keep(site: Site[Any], _: Any) -> Reply[Any]:
    locked = site.client_state is None or not site.client_state.flags.writeable
    return Reply(locked, client_state=np.zeros(3) if site.client_state is None else site.client_state + 1)


def fails_at_d(site: Site[Any], _: Any) -> Reply[str]:
    if site.name == "d":
        raise LookupError("no such organ")
    return Reply(site.name)


def fails_at_clients() -> toy.Line:
    """A network that client actors cannot create. Their names contain their sites in brackets."""
    import ray

    if "[" in (ray.get_runtime_context().get_actor_name() or ""):  # the driver has no name
        raise LookupError("no such organ")
    return toy.Line()


@dataclass(frozen=True, kw_only=True)
class Sharing(FedAvg):
    """FedAvg that also exchanges payloads, and reports how many of them the server's process unpickled."""

    size: int = 10

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        assert isinstance(fleet, BaseFleet)
        held = fleet.exchange(offer, dict.fromkeys(fleet.sites, self.size))
        fleet.map(read_all, held)
        metrics = {"opened": float(len(OPENED)), "pid": float(os.getpid())}
        if not isinstance(fleet, LocalFleet):
            import ray

            places = ray.experimental.get_object_locations(list(held._held.values()))
            metrics["inlined"] = float(sum(not place["node_ids"] for place in places.values()))
        state, _ = FedAvg.round(self, fleet, model)
        return state, metrics


@dataclass(frozen=True, kw_only=True)
class Breaking(FedAvg):
    """Fails in the third round, at a site or at the server."""

    at: str

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        if site.round == 2 and site.name == self.at:
            raise LookupError("no such organ")
        return FedAvg.client(self, site, model)

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        state, metrics = FedAvg.round(self, fleet, model)
        assert isinstance(fleet, BaseFleet)
        if fleet.accounting.round == 2 and self.at == "server":
            raise LookupError("no such organ")
        return state, metrics

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return FedAvg.predictor(self, site, model)


def start_client(name: str, task: Task, versions: Mapping[str, str] | None = None) -> Any:
    """A client actor for `task`, started as by the server. `versions` are the expected versions on its node."""
    import ray

    from raysim.distributed.client_actor import ClientActor

    actor: Any = ray.remote(ClientActor)
    config = RunConfig(task=Synthetic(), algorithm=FedAvg())
    plan = Plan(config=config, task=task, directory=Path(), versions=versions or {})
    return actor.options(num_cpus=1).remote(name, name, [ray.put(plan)], 1.0, 0.0)


def ray_fleet(
    task: Task,
    actors: Mapping[str, Any],
    *,
    site_to_actor: Mapping[str, str] | None = None,
    rounds: int,
    chaos: FaultPlan | None = None,
    batch_sites: int = 1,
) -> RayFleet:
    """A fleet on these client actors. Lost actors are started again by `start_client`."""
    from raysim.distributed.actor_pool import ActorPool
    from raysim.distributed.load_balancing import assign
    from raysim.distributed.ray_fleet import RayFleet

    if site_to_actor is None:
        site_to_actor = assign(dict.fromkeys((*task.inside, *task.outside), 1.0), list(actors))
    pool = ActorPool(actors, site_to_actor, partial(start_client, task=task))
    return RayFleet(task, pool, FleetOptions(0, rounds, batch_sites=batch_sites), chaos=chaos)


def run_on_ray(plan: Plan, namespace: str) -> Generator[Event]:
    """The events of a run on the running Ray, after its admission."""
    from raysim.distributed.admission import admit
    from raysim.distributed.run_driver import stream_events

    request = yield from admit(plan)
    yield from stream_events(plan, request, namespace)


def dies_once(site: Site[Any], shared: tuple[str, signal.Signals]) -> Reply[int]:
    """Appends to a file in a folder at each attempt; the first attempt at site c sends the signal to its process."""
    folder, sent = shared
    mark = Path(folder) / site.name
    first = not mark.exists()
    with mark.open("a") as file:
        file.write("x")
    if site.name == "c" and first:
        os.kill(os.getpid(), sent)
    return Reply(1)


def dies_always(site: Site[Any], _: Any) -> Reply[int]:
    if site.name == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return Reply(1)


@dataclass(frozen=True, kw_only=True)
class Dying(FedAvg):
    """FedAvg whose process is killed at site c in the third round, once."""

    marks: str

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        mark = Path(self.marks) / "killed"
        if site.round == 2 and site.name == "c" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FedAvg.client(self, site, model)


@dataclass(frozen=True, kw_only=True)
class ReportsProcess(FedAvg):
    """FedAvg that reports the process id and the torch threads of each site as metrics."""

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        reply = FedAvg.client(self, site, model)
        facts = {"pid": float(os.getpid()), "threads": float(torch.get_num_threads())}
        return replace(reply, metrics={**reply.metrics, **facts})


def hangs_once(site: Site[Any], folder: str) -> Reply[int]:
    """Site c sleeps for an hour in the first attempt."""
    mark = Path(folder) / site.name
    if site.name == "c" and not mark.exists():
        mark.touch()
        time.sleep(3600)
    return Reply(1)


@dataclass(frozen=True, kw_only=True)
class Greedy(FedAvg):
    """FedAvg whose site-02 allocates 9 GB in the second round, once: it creates the file `once` before."""

    once: str

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        if (site.name, site.round) == ("site-02", 1) and not Path(self.once).exists():
            Path(self.once).touch()
            taken = []
            for _ in range(90):
                taken.append(np.ones(100_000_000, np.uint8))
                time.sleep(0.05)
        return super().client(site, model)


@dataclass(frozen=True, kw_only=True)
class Sleeping(FedAvg):
    """FedAvg whose site b takes `seconds` seconds."""

    seconds: float

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        time.sleep(self.seconds if site.name == "b" else 0)
        return FedAvg.client(self, site, model)
