"""Prediction and evaluation on Ray: the same files as in one process."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from raysim.distributed.finished_run_commands import evaluate, predict
from tests.support.trained import trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that adapts its model to the images of outside sites."""
    made = tmp_path_factory.mktemp("finished")
    trained(made, "slices", "fedavg", **{"algorithm.outside": "tent", "task.network.norm": "batch"})
    return made


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_a_prediction_on_ray_has_the_same_files(folder: Path, tmp_path: Path, ray_started: None) -> None:
    for backend in ("local", "ray"):
        out = tmp_path / backend
        found = predict(folder / "run", str(folder / "volumes.csv"), out, backend=backend, probabilities=True)  # type: ignore[arg-type]
        assert found["cases"] == 6
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_an_evaluation_on_ray_has_the_same_scores(folder: Path, tmp_path: Path, ray_started: None) -> None:
    local, on_ray = (evaluate(folder / "run", {"backend": name}, out=tmp_path / name) for name in ("local", "ray"))
    assert on_ray.metrics == local.metrics
    tables = [pd.read_parquet(found.path / "cases.parquet") for found in (local, on_ray)]
    assert tables[0].equals(tables[1])
