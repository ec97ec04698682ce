"""Where a run would be, on Ray or in this process: asks its nodes what they are, and calls one function apart."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import ray
from ray.exceptions import RayError

from raysim.config.schema import RunConfig
from raysim.distributed import node_probe
from raysim.distributed.batch_probe import BatchProbe, measure_batches
from raysim.distributed.cluster_checks import KNOCK, probe_nodes
from raysim.distributed.connection import accepts_token, connect
from raysim.distributed.diagnostics import Check, NodeReport
from raysim.distributed.environment import pickle_by_value
from raysim.distributed.ray_errors import remote_cause
from raysim.federation.site_executor import Failure

PATIENCE = 300.0  # seconds for a probe


@dataclass(frozen=True)
class ProbeEnvironment:
    """The nodes, and `call(arguments, cpus, gpus)`, which gives what `measure_batches` says in a process of its own."""

    check: Check
    seen: Sequence[NodeReport]
    own: bool | None  # whether Ray is this command's own; None without Ray
    call: Callable[[Sequence[Any], float, float], BatchProbe | Failure]
    open_to_all: bool = False  # whether Ray lets in who has no token


def open_probe_environment(
    config: RunConfig, read: Sequence[str], written: Sequence[str]
) -> AbstractContextManager[ProbeEnvironment]:
    """Where `config` would run, and whether its nodes can read and write these paths.

    Raises PlacementError where Ray cannot be had.
    """
    return (_local if config.backend == "local" else _on_ray)(config, read, written)


@contextmanager
def _local(config: RunConfig, read: Sequence[str], written: Sequence[str]) -> Iterator[ProbeEnvironment]:
    psutil: Any = import_module("psutil")
    facts = node_probe.probe(read, written, (), "")
    cpus, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    here = NodeReport("this machine", cpus, len(facts["gpus"]), memory, 0, facts)
    yield ProbeEnvironment(Check("Ray", "ok", "not used: backend=local"), [here], None, lambda args, *_: _apart(args))


@contextmanager
def _on_ray(config: RunConfig, read: Sequence[str], written: Sequence[str]) -> Iterator[ProbeEnvironment]:
    asked = config.ray_address or os.environ.get("RAY_ADDRESS")
    pickle_by_value(type(config.algorithm), type(config.task))
    with connect(config.ray_address) as dashboard:
        gcs = ray.get_runtime_context().gcs_address
        found = f"{ray.__version__} at {gcs}, {'joined' if asked else 'started for this command'}; dashboard "
        cure = "" if dashboard else "install ray[default], and start it with its dashboard"
        check = Check("Ray", "ok" if dashboard else "note", found + (dashboard or "none"), cure)
        head_ports = [int(address.rpartition(":")[2]) for address in (gcs, dashboard) if address]
        yield ProbeEnvironment(
            check, probe_nodes(node_probe.probe, read, written, head_ports), not asked, _remotely, accepts_token(gcs)
        )


def _remotely(args: Sequence[Any], cpus: float, gpus: float) -> BatchProbe | Failure:
    remote: Any = ray.remote(max_calls=1)(measure_batches)
    # A process of its own: one that had done other work would remember more memory than this takes.
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
    ref = remote.options(**options).remote(*args)
    try:
        if ray.wait([ref], timeout=PATIENCE)[0]:
            probe: BatchProbe | Failure = ray.get(ref)
            return probe
    except RayError as error:
        return Failure(remote_cause(error), str(error))
    ray.cancel(ref, force=True)
    free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
    return Failure(f"no answer within {PATIENCE:g} s; {free['CPU']:g} CPU and {free['GPU']:g} GPU are free now", "")


def _apart(args: Sequence[Any]) -> BatchProbe | Failure:
    """The same without Ray, in a new process of this machine."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_answer, args=(theirs, ray.cloudpickle.dumps(args)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            return Failure(f"no answer within {PATIENCE:g} s", "")
        probe: BatchProbe | Failure = ours.recv()
        return probe
    except EOFError:
        process.join(KNOCK)
        return Failure(f"the process died with exit code {process.exitcode}: was it out of memory?", "")
    finally:
        process.kill()


def _answer(pipe: Any, args: bytes) -> None:
    pipe.send(measure_batches(*ray.cloudpickle.loads(args)))
