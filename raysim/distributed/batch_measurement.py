"""The measurement of one batch in a clean process: seconds and memory, and the `resources` that follow from them."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raysim.config.schema import Resources
from raysim.core.contracts import Reply, Site, Task
from raysim.core.model import weights
from raysim.distributed.load_balancing import assign, makespan
from raysim.federation.site_data import DATA_CACHE_BYTES
from raysim.federation.site_executor import CallKey, CallResult, Failure, SiteExecutor
from raysim.training.local_training import LocalTraining

TIMED_S = 2.0  # seconds of steps that are timed for each number of threads, or one step if it takes longer
MAX_STEPS = 20
MEMORY_SHARE = 0.8  # share of a node's memory for client actors; the rest is for the server actor, Ray and the system
CUDA_CONTEXT_BYTES = 500_000_000  # bytes that CUDA uses on the GPU for each process
MAX_ACTORS_PER_GPU = 5  # more actors only wait for each other
THREADS = (1, 2, 4, 8)


@dataclass(frozen=True)
class BatchProbe:
    """The needs of a client actor for this network: memory in bytes, seconds of a step by number of torch threads."""

    site: str
    batch: int
    device: str
    seconds: Mapping[int, float]
    imports: int  # memory after the imports, before data are opened
    peak: int  # peak memory
    held: int  # data of this site in memory, not mapped from files
    allocated: int  # peak GPU memory of tensors
    reserved: int  # peak GPU memory that torch reserved
    parameters: int
    model: int  # bytes of the weights

    def memory(self, sites: int) -> int:
        """The memory of an actor that may run any of this number of sites."""
        return self.peak + min(DATA_CACHE_BYTES, self.held * (sites - 1))

    @property
    def on_gpu(self) -> int:
        """The memory of an actor on its GPU; 0 without one."""
        return self.reserved + CUDA_CONTEXT_BYTES if self.device == "cuda" else 0


def measure_batches(
    task: Task, algorithm: Any, seed: int, site: str, threads: Sequence[int], gpu: bool
) -> BatchProbe | Failure:
    """Measure local training at `site` in this process, which must be new."""
    imports, device = memory("VmRSS"), "cuda" if gpu and torch.cuda.is_available() else "cpu"
    try:
        executor = SiteExecutor(task, seed, device, threads[0])
    except Exception as error:  # noqa: BLE001 - a user's network
        return Failure(f"{type(error).__name__}: {error}", "")
    train = partial(_train, executor, site, algorithm if isinstance(algorithm, LocalTraining) else LocalTraining())
    seconds = dict[int, float]()
    for steps in (1, 1):  # the first step loads libraries and selects kernels
        result = train(steps)
        if result.failure:
            return result.failure
    steps = max(1, min(MAX_STEPS, int(TIMED_S / result.metrics["seconds"])))
    for count in threads:
        executor.threads = count
        result = train(steps)
        if result.failure:
            return result.failure
        seconds[count] = result.metrics["seconds"] / steps
    return BatchProbe(
        site=site,
        batch=min(task.batch_size, task.sizes[site]["train"]),
        device=device,
        seconds=seconds,
        imports=imports,
        peak=memory("VmHWM"),
        held=executor.data_cache.held,
        allocated=torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        reserved=torch.cuda.max_memory_reserved() if device == "cuda" else 0,
        parameters=int(result.metrics["parameters"]),
        model=int(result.metrics["bytes"]),
    )


def _train(executor: SiteExecutor, site: str, training: LocalTraining, steps: int) -> CallResult[None]:
    return executor.execute(_steps, site, CallKey(executor.seed, 0, 1, "probe"), replace(training, steps=steps))


def _steps(site: Site[Any], training: LocalTraining) -> Reply[None]:
    net = site.load()
    model = weights(net)
    start = time.perf_counter()
    training.fit(net, site)
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in net.parameters())
    return Reply(None, metrics={"seconds": seconds, "parameters": parameters, "bytes": model.nbytes})


def memory(kind: str) -> int:
    """Memory of this process in bytes: `VmRSS` is the present value, `VmHWM` the peak."""
    # getrusage is the fallback: it includes the peak of the process that this one was forked from.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line.split()[1] for line in lines if line.startswith(f"{kind}:")), None)
    return int(found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def steps_of(algorithm: Any, task: Task) -> dict[str, int]:
    """Optimiser steps of each inside site in a round; of one epoch if the algorithm does not use LocalTraining."""
    training = algorithm if isinstance(algorithm, LocalTraining) else LocalTraining()
    passes = {site: -(-task.sizes[site]["train"] // task.batch_size) for site in task.inside}
    return {site: training.steps or training.epochs * count for site, count in passes.items()}


@dataclass(frozen=True)
class Machine:
    """A node: CPUs, memory in bytes, number of GPUs that torch can use, and memory of the smallest GPU in bytes."""

    cpus: float
    memory: float
    gpus: int = 0
    gpu_memory: float = 0.0


@dataclass(frozen=True)
class Proposal:
    """The proposed resources, and the estimated seconds of a round of all inside sites with them."""

    resources: Resources
    seconds: float


def propose_resources(
    machines: Sequence[Machine], probe: BatchProbe, steps: Mapping[str, int], most: int
) -> Proposal | None:
    """The resources of up to `most` client actors with which a round is shortest; None if not even one fits."""
    per_gpu = actors_per_gpu(machines, probe) if probe.device == "cuda" else None
    need = probe.memory(len(steps))
    best: Proposal | None = None
    for cpus in sorted({*probe.seconds, *_memory_bound_cpus(machines, need)}):
        count = actors(machines, cpus, per_gpu, need, most)
        if not count:
            continue
        seconds = round_seconds(probe, steps, count, cpus)
        if best is None or seconds < 0.95 * best.seconds:  # fewer threads unless more are faster
            share = int(10_000 / per_gpu) / 10_000 if per_gpu else 0.0  # rounded down: the printed value fits
            resources = Resources(client_actors=count, cpus_per_client=float(cpus), gpus_per_client=share)
            best = Proposal(resources, seconds)
    return best


def actors_per_gpu(machines: Sequence[Machine], probe: BatchProbe) -> int:
    """The number of client actors that share each GPU, computed from the memory of the smallest GPU."""
    smallest = min((machine.gpu_memory for machine in machines if machine.gpus), default=0.0)
    return min(MAX_ACTORS_PER_GPU, int(smallest / probe.on_gpu))


def actors(machines: Sequence[Machine], cpus: int, per_gpu: int | None, need: float, most: int) -> int:
    """The greatest number of client actors of `cpus` each that a run can request.

    Ray counts CPUs and GPUs, not memory, and fills a node before it uses the next one. If a node has memory for fewer
    actors than it has CPUs for, the number that fits in memory is the limit.
    """
    slots = [_slots(machine, cpus, per_gpu) for machine in machines]
    held = [int(MEMORY_SHARE * machine.memory / need) for machine in machines]
    return min([most, sum(slots), *(fits for slot, fits in zip(slots, held, strict=True) if slot > fits)])


def _slots(machine: Machine, cpus: int, per_gpu: int | None) -> int:
    by_cpu = int(machine.cpus / cpus + 1e-6)
    return by_cpu if per_gpu is None else min(by_cpu, machine.gpus * per_gpu)


def _memory_bound_cpus(machines: Sequence[Machine], need: float) -> set[int]:
    """For each node, the smallest number of CPUs per actor at which its memory no longer limits the actors."""
    return {
        int(machine.cpus / (int(MEMORY_SHARE * machine.memory / need) + 1)) + 1
        for machine in machines
        if machine.cpus >= 1
    }


def round_seconds(probe: BatchProbe, steps: Mapping[str, int], count: int, cpus: float) -> float:
    """Seconds of a round of these sites on `count` actors that do not slow each other down."""
    threads = max([known for known in probe.seconds if known <= cpus], default=min(probe.seconds))
    costs = {site: number * probe.seconds[threads] for site, number in steps.items()}
    return makespan(assign(costs, [str(i) for i in range(count)]), costs)
