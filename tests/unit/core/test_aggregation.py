"""Sums of large models: the same bits as one block after the other in one thread, with little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from raysim import Model, Reply, combine, mean
from raysim.core import aggregation
from raysim.core.aggregation import BLOCK, CHUNK

FACTORS = [1.1 + number % 7 for number in range(CHUNK + 3)]


@pytest.fixture(autouse=True)
def small_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "THREADED", 2 * BLOCK)  # so that small arrays use threads


def models(entries: int) -> list[Model]:
    """Random float32 weights and a counter."""
    drawn = np.random.default_rng(0).standard_normal((len(FACTORS), entries), np.float32)
    return [Model.of({"w": row, "n": np.array(number)}) for number, row in enumerate(drawn)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("entries", [1, BLOCK, 3 * BLOCK + 7])
def test_sums_have_the_bits_of_one_thread(threads: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "THREADS", threads)
    given = models(entries)
    expected = np.zeros(entries)
    for model, factor in zip(given, FACTORS, strict=True):
        expected += model["w"] * np.float64(factor)
    replies = {f"{n:02}": Reply(model, weight=w) for n, (model, w) in enumerate(zip(given, FACTORS, strict=True))}
    assert np.array_equal(combine(given, FACTORS)["w"], expected.astype(np.float32))
    assert np.array_equal(mean(replies)["w"], (expected / sum(FACTORS)).astype(np.float32))
    assert mean(replies)["n"] == round(sum(n * w for n, w in enumerate(FACTORS)) / sum(FACTORS))


@pytest.mark.parametrize(
    ("replies", "models"),
    [(CHUNK, 1), (CHUNK + 3, 3)],  # with more than CHUNK replies, a sum in float64 has the size of two models
)
def test_a_mean_needs_the_memory_of_few_models(replies: int, models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "THREADS", 2)
    model = Model.of({"w": np.ones(20 * BLOCK, np.float32)})
    given = {f"{number:02}": Reply(model) for number in range(replies)}
    tracemalloc.start()
    mean(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 2 * 2 * 8 * BLOCK  # each of two threads has two
    assert peak < models * model.nbytes + blocks + 1e5
