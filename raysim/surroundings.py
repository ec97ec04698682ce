"""Where a run would be, on Ray or in this process: asks its nodes what they are, and calls one function apart."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim import node
from raysim.checks import Check, Seen
from raysim.config import RunConfig
from raysim.dispatch import told
from raysim.driver import ray_running
from raysim.launch import by_value
from raysim.probe import Probe, measure
from raysim.worker import Failure

KNOCK = 20.0  # seconds for a node to say what it is
PATIENCE = 300.0  # seconds for a probe
PORTS = ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort", "MetricsAgentPort", "RuntimeEnvAgentPort")


@dataclass(frozen=True)
class Surroundings:
    """The nodes, and `call(arguments, cpus, gpus)`, which gives what `measure` says in a process of its own."""

    check: Check
    seen: Sequence[Seen]
    own: bool | None  # whether Ray is this command's own; None without Ray
    call: Callable[[Sequence[Any], float, float], Probe | Failure]


def surroundings(
    config: RunConfig, read: Sequence[str], written: Sequence[str]
) -> AbstractContextManager[Surroundings]:
    """Where `config` would run, and whether its nodes can read and write these paths.

    Raises PlacementError where Ray cannot be had.
    """
    return (_local if config.fleet == "local" else _on_ray)(config, read, written)


@contextmanager
def _local(config: RunConfig, read: Sequence[str], written: Sequence[str]) -> Iterator[Surroundings]:
    psutil: Any = import_module("psutil")
    facts = node.facts(read, written, (), "")
    cpus, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    here = Seen("this machine", cpus, len(facts["gpus"]), memory, 0, facts)
    yield Surroundings(Check("Ray", "ok", "not used: fleet=local"), [here], None, lambda args, *_: _apart(args))


@contextmanager
def _on_ray(config: RunConfig, read: Sequence[str], written: Sequence[str]) -> Iterator[Surroundings]:
    asked = config.address or os.environ.get("RAY_ADDRESS")
    by_value(type(config.algorithm), type(config.task))
    ray.cloudpickle.register_pickle_by_value(node)  # a node without raysim is to answer too
    with ray_running(config.address) as dashboard:
        gcs = ray.get_runtime_context().gcs_address
        found = f"{ray.__version__} at {gcs}, {'joined' if asked else 'started for this command'}; dashboard "
        cure = "" if dashboard else "install ray[default], and start it with its dashboard"
        check = Check("Ray", "ok" if dashboard else "note", found + (dashboard or "none"), cure)
        head_ports = [int(address.rpartition(":")[2]) for address in (gcs, dashboard) if address]
        yield Surroundings(check, _seen(read, written, head_ports), not asked, _remotely)


def _seen(read: Sequence[str], written: Sequence[str], head_ports: Sequence[int]) -> list[Seen]:
    """Every live node, and its answer if it gave one in time."""
    listed = [each for each in ray.nodes() if each["Alive"]]
    refs = []
    for each in listed:
        ports = [each[port] for port in PORTS if each.get(port)]
        ports += head_ports if "node:__internal_head__" in each["Resources"] else []
        session = str(Path(each["ObjectStoreSocketName"]).parent.parent)
        there = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        remote: Any = ray.remote(max_calls=1)(node.facts)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        refs.append(remote.options(**options).remote(read, written, ports, session))
    ready, late = ray.wait(refs, num_returns=len(refs), timeout=KNOCK)
    for ref in late:
        ray.cancel(ref, force=True)
    names = [each["NodeManagerAddress"] for each in listed]
    return [
        _node(
            name if names.count(name) == 1 else f"{name} ({each['NodeID'][:6]})", each["Resources"], ref, ref in ready
        )
        for name, each, ref in zip(names, listed, refs, strict=True)
    ]


def _node(name: str, has: Mapping[str, float], ref: Any, ready: bool) -> Seen:
    facts, silence = None, f"no answer within {KNOCK:g} s"
    try:
        facts = ray.get(ref) if ready else None
    except RayError as error:
        silence = _cause(error)
    sizes = has.get("memory", 0.0), has.get("object_store_memory", 0.0)
    return Seen(name, has.get("CPU", 0.0), has.get("GPU", 0.0), *sizes, facts, silence)


def _remotely(args: Sequence[Any], cpus: float, gpus: float) -> Probe | Failure:
    remote: Any = ray.remote(max_calls=1)(measure)
    # A process of its own: one that had done other work would remember more memory than this takes.
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
    ref = remote.options(**options).remote(*args)
    try:
        if ray.wait([ref], timeout=PATIENCE)[0]:
            probe: Probe | Failure = ray.get(ref)
            return probe
    except RayError as error:
        return Failure(_cause(error), str(error))
    ray.cancel(ref, force=True)
    free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
    return Failure(f"no answer within {PATIENCE:g} s; {free['CPU']:g} CPU and {free['GPU']:g} GPU are free now", "")


def _cause(error: RayError) -> str:
    """Of an exception over there the end of its traceback, which says what it was."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if isinstance(error, RayTaskError) and lines else told(error)


def _apart(args: Sequence[Any]) -> Probe | Failure:
    """The same without Ray, in a new process of this machine."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_answer, args=(theirs, ray.cloudpickle.dumps(args)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            return Failure(f"no answer within {PATIENCE:g} s", "")
        probe: Probe | Failure = ours.recv()
        return probe
    except EOFError:
        process.join(KNOCK)
        return Failure(f"the process died with exit code {process.exitcode}: was it out of memory?", "")
    finally:
        process.kill()


def _answer(pipe: Any, args: bytes) -> None:
    pipe.send(measure(*ray.cloudpickle.loads(args)))
