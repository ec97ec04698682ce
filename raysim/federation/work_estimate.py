"""The estimated seconds of a run in one process; `backend=local` is suggested if Ray takes longer to start."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raysim.core.contracts import EVALUATED_SPLITS
from raysim.federation.cohort import cohort_size
from raysim.federation.plan import Plan
from raysim.federation.site_executor import torch_threads

RAY_START_S = 6.0  # seconds that a local Ray and the first actors take to start
TRAINING = 3  # passes of a training step: forward, and backward, which takes as long as two


def local_backend_hint(plan: Plan) -> str:
    """The suggestion of `backend=local` for a short run; empty for a longer one, or if the run needs Ray."""
    resources = plan.config.resources
    needs_ray = plan.config.chaos or resources.sites or resources.client_actors != "auto"
    if plan.resume or needs_ray or any(resources.of(site)[1] for site in plan.sites):
        return ""
    seconds = forward_seconds(plan) * forward_passes(plan)
    if seconds > RAY_START_S:
        return ""
    return (
        f"all rounds are estimated to take {max(1, math.ceil(seconds))} s in one process, and Ray takes about "
        f"{RAY_START_S:g} s to start; for a faster run: backend=local"
    )


def forward_passes(plan: Plan) -> float:
    """The forward passes of single examples in all rounds, if each sampled site trains one network in each round."""
    config, task, algorithm = plan.config, plan.task, plan.config.algorithm
    count_steps = getattr(algorithm, "count_steps", lambda examples, batch: math.ceil(len(examples) / batch))
    trained = 0
    for site in task.inside:
        size = task.sizes[site].get("train", 0) + task.sizes[site].get("unlabelled", 0)
        trained += count_steps(range(size), task.batch_size) * min(size, task.batch_size)
    share = cohort_size(config.cohort.size, len(task.inside)) / len(task.inside)
    evaluated = sum(task.sizes[site].get(split, 0) for site in plan.sites for split in EVALUATED_SPLITS)
    evaluations = math.ceil(config.rounds / config.evaluate_every)
    return TRAINING * trained * share * config.rounds + evaluated * evaluations


@contextmanager
def training_threads(plan: Plan) -> Iterator[None]:
    """In the block, torch uses as many threads as a site without own resources."""
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads(plan.config.resources.cpus_per_client))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forward_seconds(plan: Plan) -> float:
    """The seconds of a forward pass of one example. In a batch, an example takes less time."""
    net, example = plan.task.start(0).eval(), torch.zeros(1, *plan.task.shape)
    seconds = []
    with torch.no_grad(), training_threads(plan):
        for _ in range(2):  # the first pass also allocates memory
            start = time.perf_counter()
            net(example)
            seconds.append(time.perf_counter() - start)
            if seconds[0] > RAY_START_S / 100:
                break
    return min(seconds)
