"""A run with more rounds that starts from the last checkpoint of another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from algorithms.ditto import Ditto
from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN
from algorithms.feddg_ga import FedDGGA
from algorithms.fedrotation import FedRotation
from algorithms.fedsm_extra import FedSMExtra
from algorithms.scaffold import Scaffold
from raysim import ConfigError
from raysim.config.schema import EarlyStopping, RunConfig
from raysim.core.network_factories import PretrainedNetwork
from raysim.federation.continuation import (
    copy_records,
    keep_initial_weights,
    plan_continuation,
    with_kept_weights,
)
from raysim.federation.plan import Plan
from raysim.storage.run_directory import exclusive_lock
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.slow import slow_except
from tests.support.toy_runs import SGD, digest, on_local
from tests.unit.federation.test_best_round import run_plan, summary


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def continued(first: Plan, out: Path, **keys: Any) -> list[Any]:
    """The events of a run that continues the finished run `first`."""
    plan = run_plan(out, first.config.algorithm, **{"rounds": 8} | keys)
    config, continuation = plan_continuation(plan.config, first.config, first.directory)
    copy_records(continuation.run, out)
    return on_local(replace(plan, config=config, continuation=continuation, resume=True))


@pytest.mark.parametrize("algorithm", [FedAvg(**SGD), Ditto(**SGD), Scaffold(lr=0.1), FedBN(**SGD)])
@pytest.mark.parametrize("every", slow_except([1, 2], [1]))
def test_the_result_is_that_of_a_longer_run(tmp_path: Path, algorithm: Any, every: int) -> None:
    keys = {"cohort": 1, "checkpoint_every": every, "evaluate_every": every}
    whole = on_local(run_plan(tmp_path / "whole", algorithm, **keys))
    on_local(first := run_plan(tmp_path / "first", algorithm, rounds=3, **keys))
    before = content(tmp_path / "first")
    events = continued(first, tmp_path / "second", **keys)
    assert digest(events) == digest(whole)
    assert [event.number for event in events if hasattr(event, "number")] == [4, 5, 6, 7, 8]
    assert content(tmp_path / "first") == before
    if every == 1:  # otherwise round 3, the last one of the first run, was evaluated too
        assert summary(tmp_path / "second")["best"] == summary(tmp_path / "whole")["best"]
    rounds = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert len(rounds) == 8


def config(algorithm: Any = None, **keys: Any) -> RunConfig:
    return RunConfig(task=Synthetic(), algorithm=algorithm or FedAvg(), **keys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run of four rounds."""
    on_local(run_plan(tmp_path / "run", rounds=4))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (FedAvg(), ""),
        (FedAvg(schedule="cosine"), "algorithm.schedule=cosine has other learning rates in a longer run"),
        (FedDGGA(), "the change of the weights decreases to 0 in the last round"),
        (FedRotation(), "the stages of the method are as long as in a run of 4 rounds"),
        (FedRotation(pretrain_rounds=2, finetune=FedAvg(schedule="poly")), "algorithm.finetune.schedule=poly"),
    ],
)
def test_what_depends_on_the_number_of_rounds_is_reported(run: Path, algorithm: Any, expected: str) -> None:
    _, found = plan_continuation(config(algorithm, rounds=9), config(algorithm, rounds=4), run)
    assert found.after_round == 4
    assert found.difference.startswith(expected)
    assert bool(found.difference) == bool(expected)
    assert found.to_mapping()["difference"] == (found.difference or None)
    assert ("equals that of a run of 9 rounds" in found.describe(9)) == (not expected)


def test_a_continued_run_may_be_recorded_by_a_tracker(run: Path) -> None:
    changed, _ = plan_continuation(config(rounds=9, tracker="mlflow"), config(rounds=4), run)
    assert changed.tracker == "mlflow"


def test_the_evaluation_of_the_last_round_is_reported(run: Path) -> None:
    _, found = plan_continuation(config(rounds=9, evaluate_every=3), config(rounds=4, evaluate_every=3), run)
    assert found.difference == "round 4 was evaluated too, because it was the last one"


def test_stages_keep_their_rounds(run: Path) -> None:
    new, _ = plan_continuation(config(FedRotation(), rounds=9), config(FedRotation(), rounds=4), run)
    assert new.algorithm.pretrain_rounds == 2
    new, _ = plan_continuation(config(FedSMExtra(), rounds=9), config(FedSMExtra(), rounds=4), run)
    assert new.algorithm.model_rounds(9) == FedSMExtra().model_rounds(4) == 2


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"rounds": 4}, "rounds=4 is not more than the 4 rounds of .*raysim resume"),
        ({"seed": 1}, "seed=1 differs from the run .*which has 0; remove seed"),
        ({"algorithm": FedAvg(lr=0.5)}, "algorithm.lr=0.5 differs from the run .*which has 0.001"),
        ({"algorithm": Ditto()}, "algorithm.name='ditto' differs"),
        ({"task": Synthetic(data=SyntheticData(sites=2))}, "task.data.sites=2 differs from the run .*which has 6"),
        ({"task": Synthetic(network={"name": "basicunet"})}, "task.network.name='basicunet' differs"),
    ],
)
def test_another_federation_is_refused(run: Path, keys: dict[str, Any], error: str) -> None:
    old = config(rounds=4)
    with pytest.raises(ConfigError, match=error):
        plan_continuation(replace(old, **{"rounds": 8} | keys), old, run)


def test_a_run_that_is_active_or_without_a_checkpoint_is_refused(run: Path) -> None:
    old, new = config(rounds=4), config(rounds=8)
    with exclusive_lock(run), pytest.raises(ConfigError, match="the run is still active; wait"):
        plan_continuation(new, old, run)
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    with pytest.raises(ConfigError, match=r"is damaged: state\.json has changed since it was written; start a new run"):
        plan_continuation(new, old, run)
    with pytest.raises(ConfigError, match="it has no checkpoint"):
        plan_continuation(new, old, run / "best")


def test_early_stopping_must_change(tmp_path: Path) -> None:
    stopping = EarlyStopping(patience=2)
    on_local(first := run_plan(tmp_path / "first", early_stopping=stopping))
    with pytest.raises(ConfigError, match=r"early stopping has ended the run .*; set early_stopping=null"):
        continued(first, tmp_path / "second", rounds=12, early_stopping=stopping)
    on_local(whole := run_plan(tmp_path / "whole", rounds=12))
    events = continued(first, tmp_path / "third", rounds=12)
    assert digest(events) == summary(whole.directory)["digest"]


def test_a_run_keeps_its_initial_weights(tmp_path: Path) -> None:
    small = Synthetic(data=SyntheticData(sites=1, cases=1, val=0, test=1, size=(16, 16)))
    assert with_kept_weights(small, tmp_path) is small
    task = small.build()
    keep_initial_weights(task, tmp_path)
    assert not list(tmp_path.iterdir())
    save_file(task.start(3).state_dict(), tmp_path / "given.safetensors")
    given = replace(small, network={**small.network, "weights": str(tmp_path / "given.safetensors")})
    keep_initial_weights(given.build(), tmp_path)
    (tmp_path / "given.safetensors").unlink()
    with pytest.raises(ConfigError, match="there is no such file"):
        given.build()
    kept = with_kept_weights(given, tmp_path).build()
    assert isinstance(kept.network, PretrainedNetwork)
    assert not kept.network.initial.differences
