"""The resources that the doctor proposes for a measured batch, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysim.core.registry import algorithm_class, task_class
from raysim.distributed.batch_measurement import (
    CUDA_CONTEXT_BYTES,
    BatchProbe,
    Machine,
    actors,
    actors_per_gpu,
    measure_batches,
    propose_resources,
    steps_of,
)
from raysim.federation.site_data import DATA_CACHE_BYTES
from raysim.federation.site_executor import Failure

GB = 10**9


PROBE = BatchProbe(
    site="a",
    batch=4,
    device="cpu",
    seconds={1: 0.4, 2: 0.2, 4: 0.19},
    imports=GB // 2,
    peak=GB,
    held=0,
    allocated=0,
    reserved=0,
    parameters=10,
    model=40,
)


STEPS = {"a": 10, "b": 5, "c": 5}


def proposed(machines: list[Machine], probe: BatchProbe = PROBE, steps: Any = STEPS, most: int = 3) -> Any:
    found = propose_resources(machines, probe, steps, most)
    if found is None:
        return None
    given = found.resources
    return given.client_actors, given.cpus_per_client, given.gpus_per_client, pytest.approx(found.seconds)


def test_few_cpus_are_used_by_one_actor_each() -> None:
    # 2 CPUs: two actors with one thread each, 10 and 5 + 5 steps, 4 s; one with two threads takes 20 x 0.2 = 4 s too.
    assert proposed([Machine(2, 100 * GB)]) == (2, 1.0, 0.0, 4.0)


def test_spare_cpus_become_threads_if_that_is_faster() -> None:
    # 12 CPUs, three sites: with two threads 10 x 0.2 = 2 s; four threads are less than 5% faster.
    assert proposed([Machine(12, 100 * GB)]) == (3, 2.0, 0.0, 2.0)


def test_never_more_actors_than_sites_or_than_are_allowed() -> None:
    assert proposed([Machine(64, 100 * GB)])[0] == 3
    assert proposed([Machine(64, 100 * GB)], most=1)[0] == 1


def test_memory_leaves_a_fifth_free() -> None:
    # 0.8 x 2.6 GB suffice for two actors of 1 GB. Ray could place eight on 8 CPUs, so only two are requested.
    assert proposed([Machine(8, 2.6 * GB)], replace(PROBE, seconds={1: 0.4})) == (2, 1.0, 0.0, 4.0)
    assert proposed([Machine(8, 0.9 * GB)]) is None


def test_two_nodes_with_little_memory_are_both_filled_by_larger_actors() -> None:
    # With one CPU each, Ray may place all on one node with memory for two: so two. With 3 of 8 CPUs, two fit on each.
    nodes, probe = [Machine(8, 2.6 * GB)] * 2, replace(PROBE, seconds={1: 0.4})
    assert actors(nodes, 1, None, GB, 4) == 2
    assert actors(nodes, 3, None, GB, 4) == 4
    assert proposed(nodes, probe, dict.fromkeys("abcd", 5), 4) == (4, 3.0, 0.0, 2.0)


def test_data_that_an_actor_keeps_count_for_every_site_up_to_a_limit() -> None:
    assert replace(PROBE, held=10).memory(3) == GB + 20
    assert replace(PROBE, held=DATA_CACHE_BYTES).memory(3) == GB + DATA_CACHE_BYTES


def test_the_share_of_a_gpu_follows_its_memory() -> None:
    probe = replace(PROBE, device="cuda", seconds={1: 0.1}, reserved=3 * GB - CUDA_CONTEXT_BYTES)
    # 10 GB suffice for three actors of 3 GB, two GPUs for six; three sites need three.
    nodes = [Machine(16, 100 * GB, 2, 10 * GB)]
    assert actors_per_gpu(nodes, probe) == 3
    assert proposed(nodes, probe) == (3, 1.0, 0.3333, 1.0)
    assert proposed([Machine(16, 100 * GB, 1, 80 * GB)], probe)[2] == 0.2  # five at most
    assert proposed([Machine(16, 100 * GB, 1, 2 * GB)], probe) is None
    assert actors([Machine(16, 100 * GB), *nodes], 1, 3, GB, 99) == 6  # none on the node without a GPU


def test_a_round_has_the_algorithm_s_steps_or_those_of_an_epoch() -> None:
    task = task_class("synthetic")().build()  # 24 cases, batches of 4
    assert set(steps_of(algorithm_class("fedavg")(epochs=2), task).values()) == {12}
    assert set(steps_of(algorithm_class("fedavg")(steps=5), task).values()) == {5}
    assert set(steps_of(object(), task).values()) == {6}


def test_a_measured_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysim.distributed.batch_measurement.TIMED_S", 0.2)
    task = task_class("synthetic")().build()
    found = measure_batches(task, algorithm_class("fedavg")(), 0, "site-02", [1], gpu=True)
    assert isinstance(found, BatchProbe)
    assert (found.site, found.batch, set(found.seconds)) == ("site-02", 4, {1})
    assert found.model >= 4 * found.parameters > 0
    assert found.peak >= found.imports > 50_000_000
    broken = replace(task, loss=lambda logits, labels: 1 / 0)
    failure = measure_batches(broken, algorithm_class("fedavg")(), 0, "site-02", [1], gpu=False)
    assert isinstance(failure, Failure)
    assert failure.cause.startswith("ZeroDivisionError: division by zero (")
