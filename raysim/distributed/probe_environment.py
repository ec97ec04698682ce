"""The environment in which `raysim doctor` probes a configuration: its nodes, and a separate process for one batch."""

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
from raysim.distributed.batch_measurement import BatchProbe, measure_batches
from raysim.distributed.cluster_checks import probe_nodes
from raysim.distributed.connection import accepts_token, connect
from raysim.distributed.local_ray import target_address
from raysim.distributed.node_checks import Check, NodeReport, Verdict
from raysim.distributed.ray_errors import summarize
from raysim.distributed.run_environment import pickle_by_value
from raysim.distributed.timeouts import BATCH_PROBE_TIMEOUT_S, NODE_PROBE_TIMEOUT_S
from raysim.federation.site_executor import Failure


@dataclass(frozen=True)
class ProbeEnvironment:
    """The nodes, and `call(arguments, cpus, gpus)`: `measure_batches` in a new process."""

    check: Check
    nodes: Sequence[NodeReport]
    is_local_ray: bool | None  # whether Ray was started for this command; None without Ray
    call: Callable[[Sequence[Any], float, float], BatchProbe | Failure]
    open_to_all: bool = False  # whether Ray accepts clients without a token


def open_probe_environment(
    config: RunConfig, reads: Sequence[str], writes: Sequence[str]
) -> AbstractContextManager[ProbeEnvironment]:
    """The environment in which `config` would run. Its nodes have checked whether they can use these paths.

    Raises PlacementError if Ray cannot be joined or started.
    """
    return (_local_environment if config.backend == "local" else _ray_environment)(config, reads, writes)


@contextmanager
def _local_environment(config: RunConfig, reads: Sequence[str], writes: Sequence[str]) -> Iterator[ProbeEnvironment]:
    psutil: Any = import_module("psutil")
    facts = node_probe.probe(reads, writes, (), "")
    cpus, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    node = NodeReport("this machine", cpus, len(facts["gpus"]), memory, 0, facts)
    check = Check("Ray", Verdict.OK, "not used: backend=local")
    yield ProbeEnvironment(check, [node], None, lambda arguments, *_: _call_in_process(arguments))


@contextmanager
def _ray_environment(config: RunConfig, reads: Sequence[str], writes: Sequence[str]) -> Iterator[ProbeEnvironment]:
    address = target_address(config.ray_address)
    pickle_by_value(type(config.algorithm), type(config.task))
    with connect(config.ray_address) as dashboard:
        gcs = ray.get_runtime_context().gcs_address
        found = f"{ray.__version__} at {gcs}, {'joined' if address else 'started for this command'}; dashboard "
        cure = "" if dashboard else "install ray[default], and start Ray with its dashboard"
        check = Check("Ray", Verdict.OK if dashboard else Verdict.NOTE, found + (dashboard or "none"), cure)
        head_ports = [int(each.rpartition(":")[2]) for each in (gcs, dashboard) if each]
        nodes = probe_nodes(node_probe.probe, reads, writes, head_ports)
        yield ProbeEnvironment(check, nodes, not address, _call_on_ray, accepts_token(gcs))


def _call_on_ray(arguments: Sequence[Any], cpus: float, gpus: float) -> BatchProbe | Failure:
    remote: Any = ray.remote(max_calls=1)(measure_batches)
    # A new process, because the memory of earlier work in the same process would be counted.
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
    ref = remote.options(**options).remote(*arguments)
    try:
        if ray.wait([ref], timeout=BATCH_PROBE_TIMEOUT_S)[0]:
            probe: BatchProbe | Failure = ray.get(ref)
            return probe
    except RayError as error:
        return Failure(summarize(error), str(error))
    ray.cancel(ref, force=True)
    free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
    available = f"{free['CPU']:g} CPU and {free['GPU']:g} GPU are free now"
    return Failure(f"no answer within {BATCH_PROBE_TIMEOUT_S:g} s; {available}", "")


def _call_in_process(arguments: Sequence[Any]) -> BatchProbe | Failure:
    """Measure without Ray, in a new process on this machine."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_result, args=(sender, ray.cloudpickle.dumps(arguments)), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(BATCH_PROBE_TIMEOUT_S):
            return Failure(f"no answer within {BATCH_PROBE_TIMEOUT_S:g} s", "")
        probe: BatchProbe | Failure = receiver.recv()
        return probe
    except EOFError:
        process.join(NODE_PROBE_TIMEOUT_S)
        return Failure(f"the process died with exit code {process.exitcode}; it may have run out of memory", "")
    finally:
        process.kill()


def _send_result(pipe: Any, arguments: bytes) -> None:
    pipe.send(measure_batches(*ray.cloudpickle.loads(arguments)))
