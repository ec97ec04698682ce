"""Training with `algorithm.compile`: whether it is possible, and from how many rounds on a run is faster."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.seeding import preserve_rng
from raysim.federation.cohort import cohort_size
from raysim.federation.plan import Plan
from raysim.federation.work_estimate import training_threads

REPEATS = 5  # measured steps, of which the fastest counts


def check_compilation(plan: Plan) -> None:
    """Raises ConfigError if the algorithm cannot train compiled networks, or this machine cannot compile."""
    if not plan.compiled:
        return
    if not getattr(plan.config.algorithm, "can_compile", False):
        raise ConfigError(
            f"algorithm.compile=true: {plan.algorithm_name} has its own training loop, which is not compiled; set "
            "algorithm.compile=false"
        )
    if (sites := plan.batch_sites) > 1:
        raise ConfigError(
            f"algorithm.compile=true: resources.batch_sites={sites} trains sites in one batch, which is not compiled; "
            "set resources.batch_sites=1"
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"algorithm.compile=true: torch.compile needs a C++ compiler, and {compiler!r} was not found; install "
            "g++, set the environment variable CXX to a compiler, or set algorithm.compile=false"
        )


def measure_compilation(plan: Plan, processes: int) -> str:
    """A sentence with the times of a training step and of compilation, and from how many rounds on a run is faster.

    Compiles the network in this process, on the CPU; client actors on this machine find the result in torch's cache.
    Raises ConfigError if the network cannot be compiled.
    """
    with preserve_rng(), training_threads(plan):
        return _measure(plan, processes, _step(plan.task))


def _measure(plan: Plan, processes: int, step: Callable[..., None]) -> str:
    plain = _fastest(lambda: step(compiled=False))
    start = time.perf_counter()
    try:
        step(compiled=True)
    except Exception as error:  # the compiler of torch raises errors of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"algorithm.compile=true: torch.compile failed for the network of the task: {type(error).__name__}: "
            f"{reason}; set algorithm.compile=false"
        ) from error
    seconds = time.perf_counter() - start
    compiled = _fastest(lambda: step(compiled=True))
    text = (
        f"algorithm.compile: a training step takes {1000 * compiled:.3g} ms, and {1000 * plain:.3g} ms without "
        f"compilation; compilation took {seconds:.3g} s"
    )
    return f"{text}; {describe_gain(seconds, (plain - compiled) * _steps_per_round(plan) / processes)}"


def describe_gain(seconds: float, gain: float) -> str:
    """The rounds from which a run is faster, if compilation takes `seconds` and saves `gain` seconds in each round."""
    if gain <= 0:
        return "a run is not faster with it"
    return f"a run of {math.ceil(seconds / gain) + 1} or more rounds is faster with it"


def _step(task: Task) -> Callable[..., None]:
    """A function that computes the gradients of the loss of one batch of random images or rows."""
    net = task.start(0).train()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand((task.batch_size, *task.shape), generator=generator)
    example = task.open(task.inside[0]).train.labels
    assert example is not None
    labels = torch.from_numpy(np.repeat(example[:1], task.batch_size, axis=0))
    forwards: dict[bool, Callable[[Tensor], Tensor]] = {False: net, True: torch.compile(net)}

    def step(compiled: bool) -> None:
        net.zero_grad()
        task.loss(forwards[compiled](inputs), labels).backward()

    return step


def _fastest(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _steps_per_round(plan: Plan) -> float:
    task = plan.task
    sizes = [range(task.sizes[site]["train"]) for site in task.inside]
    steps: int = sum(plan.config.algorithm.count_steps(size, task.batch_size) for size in sizes)
    return steps * cohort_size(plan.config.cohort.size, len(task.inside)) / len(task.inside)
