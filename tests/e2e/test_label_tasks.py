"""Runs with several labels or a number: predicted, evaluated, exported, compared, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit

from raysim import export, tune
from raysim.cli.main import main
from raysim.distributed.finished_run_commands import evaluate, predict
from tests.support.trained import Runs, shared_runs

KINDS = ("labels", "numbers")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return shared_runs(tmp_path_factory.mktemp)


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def values(folder: Path, metric: str) -> list[float]:
    cases = pd.read_parquet(folder / "cases.parquet")
    return cases[cases["metric"] == metric]["value"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_has_the_scores_of_the_run(runs: Runs, tmp_path: Path, kind: str) -> None:
    folder = runs(kind)
    evaluate(folder / "run", {}, out=tmp_path / "evaluated", round="last")
    assert summary(tmp_path / "evaluated")["metrics"] == summary(folder / "run")["metrics"]


def test_predicted_labels_have_probabilities(runs: Runs, tmp_path: Path) -> None:
    folder = runs("labels")
    found = predict(folder / "run", str(folder / "findings.csv"), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert list(table) == ["image", "prediction", "predictor", "probability_edema", "probability_effusion"]
    assert np.allclose(table["probability_edema"], expit(values(tmp_path / "out", "logit_edema")))
    assert values(tmp_path / "out", "label_effusion") == [1, 0, 1, 0, 1, 1]
    names = table[["probability_edema", "probability_effusion"]].to_numpy() > 0.5
    assert table["prediction"].tolist() == [";".join(np.array(["edema", "effusion"])[row]) for row in names]
    assert {"auc", "auc_edema", "f1_effusion"} <= {name.split("/")[-1] for name in found["summary"]["metrics"]}


def test_predicted_numbers_are_in_the_unit_of_the_label(runs: Runs, tmp_path: Path) -> None:
    folder = runs("numbers")
    assert summary(folder / "run")["computed"] == {"target_scale": [44.0, 3.5]}
    predict(folder / "run", str(folder / "findings.csv"), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["prediction"].tolist() == pytest.approx(values(tmp_path / "out", "prediction"))
    errors = np.abs(table["prediction"] - [40.5, 47.5, 54.5, 61.5, 68.5, 75.5])
    assert values(tmp_path / "out", "mae") == pytest.approx(errors.tolist())


def test_images_without_labels_are_predicted(runs: Runs, tmp_path: Path) -> None:
    folder = runs("numbers")
    (folder / "new.csv").write_text("image\n0.png\n")
    found = predict(folder / "run", str(folder / "new.csv"), tmp_path / "out")
    assert (found["cases"], found["summary"]) == (1, None)


@pytest.mark.parametrize(("kind", "plot", "output"), [("labels", "ROC", "2 labels"), ("numbers", "predictions", "y;")])
def test_reports_and_exports_describe_the_outputs(
    runs: Runs, tmp_path: Path, kind: str, plot: str, output: str
) -> None:
    folder = runs(kind)
    assert plot in (folder / "run" / "report.html").read_text()
    assert output in (folder / "run" / "models" / "README.md").read_text()
    assert export(folder / "run", "torch", out=tmp_path / "net.pt2").exists()


def test_runs_are_compared_by_the_area_of_a_label(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, other = runs("numbers"), runs("numbers", seed=1)
    assert main(["compare", str(numbers / "run"), str(other / "run"), "--split", "val", "--round", "last"]) == 0
    assert "mae" in capsys.readouterr().out
    labels = str(runs("labels") / "run")
    assert main(["compare", labels, labels, "--split", "val", "--metric", "auc_edema"]) == 2
    assert "no site has cases of both classes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_lowers_the_error(tmp_path: Path, ray_started: None) -> None:
    from tests.support.trained import TASKS
    from tests.support.wrong_files import write_data_sets

    write_data_sets(tmp_path)
    task = TASKS["numbers"]
    data = {**task["data"], "table": str(tmp_path / "findings.csv"), "cache": str(tmp_path / "cache")}
    keys = {"rounds": 2, "algorithm.name": "fedavg"}
    space = {"algorithm.lr": "choice([0.0001, 0.1])"}
    tune(space, {**task, "data": data, "batch_size": 2}, keys, searcher="grid", out=str(tmp_path / "s"), quiet=True)
    errors = pd.read_parquet(tmp_path / "s" / "trials.parquet").set_index("algorithm.lr")["best/inside/val/mae/mean"]
    best = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    assert best["algorithm"]["lr"] == errors.idxmin()
