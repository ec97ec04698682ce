"""Several trials in one process, which train in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysim.search import trial_batch
from raysim.search.spec import FederationVariant, SearchSpec
from raysim.search.trial_batch import TrialBatch
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds
from raysim.training import site_batch
from tests.support.searches import searched

LEARNING_RATES = {1: 1e-3, 2: 3e-3, 3: 1e-2}
VALUE = "inside/val/dice/mean"


def batch(spec: SearchSpec, capacity: int, monkeypatch: pytest.MonkeyPatch) -> TrialBatch:
    monkeypatch.setattr(trial_batch, "prepare_process", lambda spec: None)
    monkeypatch.setattr(SearchSpec, "node_incompatibility", lambda self: "")
    return TrialBatch(spec, capacity, 0.0)


async def rounds_of(trials: TrialBatch, number: int, rounds: int) -> list[dict[str, Any]]:
    """The first rounds of a trial, which then leaves."""
    assert await trials.join(number, {"algorithm.lr": LEARNING_RATES[number]})
    rows = [await trials.step(number) for _ in range(rounds)]
    await trials.leave(number)
    return rows


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of networks of the trainings in one batch."""
    found: list[int] = []
    run: Callable[[Any], Any] = site_batch.StackedTraining.run

    def counting(self: Any) -> Any:
        found.append(len(self.requests))
        return run(self)

    monkeypatch.setattr(site_batch.StackedTraining, "run", counting)
    return found


def test_trials_of_a_batch_have_the_scores_of_single_ones(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = searched(tmp_path / "together", "rounds=3", "resources.batch_sites=1")
    trials = batch(replace(spec, batched=True), 3, monkeypatch)

    async def run() -> Any:
        stopped, *others = (rounds_of(trials, number, 1 if number == 2 else 3) for number in (2, 1, 3))
        return await asyncio.gather(stopped, *others)

    found = asyncio.run(run())
    assert sizes == [3] * 3 + [2] * 6  # site by site; the second trial leaves after one round
    alone = searched(tmp_path / "alone", "rounds=3", "resources.batch_sites=1")
    cache = TrialCache(alone)
    for number, rows in zip((2, 1, 3), found, strict=True):
        trial = TrialRounds(alone, number, {"algorithm.lr": LEARNING_RATES[number]}, cache)
        expected = [trial.step() for _ in rows]
        trial.close()
        assert [row[VALUE] for row in rows] == pytest.approx([row[VALUE] for row in expected], abs=1e-3)
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
        assert [row["round"] for row in rows] == [row["round"] for row in expected]


def test_a_round_starts_without_a_trial_that_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_batch, "ROUND_TIMEOUT_S", 0.1)
    trials = batch(replace(searched(tmp_path, "rounds=2"), batched=True), 2, monkeypatch)

    async def run() -> list[dict[str, Any]]:
        assert await trials.join(2, {"algorithm.lr": 0.01})  # its process is then lost
        assert not (await asyncio.gather(trials.join(1, {"algorithm.lr": 0.01}), trials.join(3, {})))[1]  # full
        return [await trials.step(1) for _ in range(2)]

    assert [row["round"] for row in asyncio.run(run())] == [1, 2]


def test_a_failing_trial_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = batch(replace(searched(tmp_path, "rounds=1"), batched=True), 2, monkeypatch)

    async def one(number: int, rate: float) -> dict[str, Any]:
        await trials.join(number, {"algorithm.lr": rate})
        return await trials.step(number)

    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(one(1, 1e30), one(2, 0.01))

    failed, done = asyncio.run(run())
    assert failed["status"] == "failed"
    assert "lower the learning rate" in failed["cause"]
    assert done["digests"]


def test_the_federations_of_a_trial_train_in_one_batch(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = (FederationVariant(0), FederationVariant(1))
    spec = replace(searched(tmp_path, "rounds=1", "resources.batch_sites=1"), batched=True, variants=variants)
    row = TrialRounds(spec, 1, {"algorithm.lr": 0.01}, TrialCache(spec)).step()
    assert sizes == [2, 2, 2]
    assert row["digests"].keys() == {"seed-0", "seed-1"}
    assert np.isfinite(row[VALUE])
