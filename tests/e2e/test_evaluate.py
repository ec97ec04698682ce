"""The evaluation of a finished run without training: the scores of the run again, new sites, files, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raysim import ConfigError, RunResult, evaluate, export, run
from raysim.federation.run_evaluation import evaluation_config
from raysim.federation.trained_run import open_run
from raysim.reporting.comparison import CompareOptions, compare
from tests.support.trained import trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with personal models at a, and b outside."""
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "batch"}
    keys = {"algorithm.outside": "tent", "task.network": network}
    return trained(tmp_path_factory.mktemp("evaluated"), "pictures", "fedbn", **keys)


def cases(path: Path) -> Any:
    table = pd.read_parquet(path / "cases.parquet")
    return table.sort_values(["site", "split", "case", "metric"], ignore_index=True)


@pytest.mark.parametrize("choice", ["best", "last"])
def test_the_data_of_the_run_have_the_scores_of_the_run(choice: Any, finished: RunResult, tmp_path: Path) -> None:
    found = evaluate(finished.path, {}, round=choice, out=tmp_path / "out")
    of_run = finished.best["metrics"] if choice == "best" else finished.metrics
    assert found.metrics == of_run
    expected = cases(finished.path)
    expected = expected[expected[choice]].reset_index(drop=True)
    assert cases(found.path).drop(columns=["last", "best"]).equals(expected.drop(columns=["last", "best"]))


def test_keys_of_the_prediction_may_differ_from_the_run(finished: RunResult, tmp_path: Path) -> None:
    found = evaluate(finished.path, {"algorithm.outside": "global"}, round="last", out=tmp_path / "out")
    of = {path: cases(path).query("site == 'b' and metric == 'dice'") for path in (finished.path, found.path)}
    assert set(of[finished.path]["predictor"]) == {"own"}
    assert set(of[found.path]["predictor"]) == {"global"}
    assert found.metrics["outside/val/dice"] == finished.metrics["outside/val/dice@global"]


def test_new_sites_are_outside_sites(finished: RunResult) -> None:
    folder = finished.path.parent
    table = pd.read_csv(folder / "table.csv").assign(split="test")
    table.assign(site=table["site"].replace({"b": "clinic"})).to_csv(folder / "new.csv", index=False)
    before = {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()}
    found = evaluate(finished.path, {"task.data.table": str(folder / "new.csv")})
    assert found.path == finished.path / "evaluations" / "new-001"
    assert found.sites["role"].to_dict() == {"a": "inside", "clinic": "outside"}
    assert found.metric == "inside/test/dice"
    assert {path.name for path in found.path.iterdir()} == {
        "summary.json",
        "cases.parquet",
        "config.yaml",
        "report.html",
    }
    assert json.loads((found.path / "summary.json").read_text())["round"] == finished.best["round"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert evaluate(finished.path, {"task.data.table": str(folder / "new.csv")}).path.name == "new-002"


def test_folds_of_the_run_do_not_apply_to_a_new_table(finished: RunResult) -> None:
    trained_run = open_run(finished.path)
    data = replace(trained_run.config.task.data, folds=2, fold=1)
    of_fold = replace(trained_run, config=replace(trained_run.config, task=replace(trained_run.config.task, data=data)))
    config = evaluation_config(of_fold, {"task": {"data": {"table": str(finished.path.parent / "new.csv")}}})
    assert (config.task.data.folds, config.task.data.fold) == (None, None)
    for same in ({}, {"table": data.table}):  # so that no training row is evaluated
        assert evaluation_config(of_fold, {"task": {"data": same}}).task.data.fold == 1


def test_evaluations_are_compared_like_runs(finished: RunResult, tmp_path: Path) -> None:
    keys = {"cohort": 0.5, "seed": 0, "task.network.norm": "batch"}
    half = trained(tmp_path, "pictures", "fedbn", **keys, data={"table": str(finished.path.parent / "table.csv")})
    for run_result, name in ((finished, "all"), (half, "half")):
        evaluate(run_result.path, {"algorithm.outside": "global"}, round="last", out=tmp_path / "out" / name)
    found = compare([tmp_path / "out"], CompareOptions(by="cohort.size", split="val"))
    assert [group.name for group in found.groups] == ["size=1.0", "size=0.5"]
    assert found.better == "higher"


def test_rows_are_standardised_as_in_the_run(tmp_path: Path) -> None:
    finished = trained(tmp_path, "rows")
    table = pd.read_csv(tmp_path / "rows.csv")
    table[table["split"] == "val"].to_csv(tmp_path / "new.csv", index=False)
    found = evaluate(finished.path, {"task.data.table": str(tmp_path / "new.csv")}, round="last")
    assert found.metrics == finished.metrics


def test_splits_in_which_training_rows_would_be_evaluated_are_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, "rows", data={"val": 0.3}).path
    reason = "so training rows would be evaluated; remove the key, or set task.data.table to a table with other rows"
    assert f"task.data.val=0.5: the run was trained with task.data.val=0.3, {reason}" in refused(
        path, task__data__val=0.5
    )
    assert "task.data.folds=2: the run was trained with task.data.folds=null" in refused(
        path, task__data__folds=2, task__data__fold=0, task__data__val=0.3
    )
    assert "task.data.seed=1: the run was trained with task.data.seed=0" in refused(path, task__data__seed=1)


def test_other_cases_of_a_task_without_a_table(tmp_path: Path) -> None:
    data = {"sites": 2, "outside": ["clinic"], "cases": 2, "val": 1, "test": 1, "size": [8, 8]}
    network = {"name": "unet", "channels": [2, 4], "strides": [2]}
    finished = run({"rounds": 1, "task.data": data, "task.network": network}, backend="local", out=tmp_path / "run")
    found = evaluate(finished.path, {"task.data.outside": ["x", "y"], "task.data.seed": 5})
    assert found.path.name == "synthetic-001"
    assert found.sites["role"].to_dict() == {"site-01": "inside", "site-02": "inside", "x": "outside", "y": "outside"}
    program = torch.export.load(export(finished.path, "torch"))
    assert program.module()(torch.zeros(3, 1, 8, 8)).shape == (3, 2, 8, 8)


def refused(path: Path, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        evaluate(path, {key.replace("__", "."): value for key, value in keys.items()})
    return str(error.value)


def test_wrong_inputs_write_nothing(finished: RunResult, tmp_path: Path) -> None:
    path, folder = finished.path, finished.path.parent
    before = sorted(path.rglob("*"))
    assert "rounds: an evaluation does not train; use keys of task, algorithm, metric" in refused(path, rounds=3)
    assert "algorithm=ditto: the run was trained with algorithm=fedbn; remove the key" in refused(
        path, algorithm="ditto"
    )
    assert "task.network: the run was trained with another network" in refused(path, task__network="segresnet")
    assert "the data have examples of shape (1, 16, 16), but the run was trained with (1, 12, 20)" in refused(
        path, task__data__size=[16, 16]
    )
    assert "algorithm.trainable: the run has trained another part of the network" in refused(
        path, algorithm__trainable=["*"]
    )
    pd.read_csv(folder / "table.csv").assign(split="train").to_csv(tmp_path / "train.csv", index=False)
    keys = {"task__data__root": str(folder)}
    assert "no site has val or test rows" in refused(path, task__data__table=str(tmp_path / "train.csv"), **keys)
    pd.read_csv(folder / "table.csv").drop(columns="split").to_csv(tmp_path / "none.csv", index=False)
    assert "it has no column 'split'" in refused(path, task__data__table=str(tmp_path / "none.csv"), **keys)
    assert sorted(path.rglob("*")) == before


def test_an_adaptation_that_the_network_does_not_support_is_refused_before_the_evaluation(tmp_path: Path) -> None:
    network = {"name": "unet", "channels": [2, 4], "strides": [2]}  # instance normalisation without scales
    data = {"sites": 1, "outside": ["x"], "cases": 2, "val": 1, "test": 1, "size": [8, 8]}
    finished = run({"rounds": 1, "task.data": data, "task.network": network}, backend="local", out=tmp_path / "run")
    assert "algorithm.outside=tent or sar adapts the scales and shifts" in refused(
        finished.path, algorithm__outside="tent"
    )
    assert not (finished.path / "evaluations").exists()
