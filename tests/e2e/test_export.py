"""Exports that are refused, with the options that can be exported; the metadata of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysim import ConfigError
from raysim.federation.export import export
from tests.support.trained import Runs, shared_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a finished run, which tests share."""
    return shared_runs(tmp_path_factory.mktemp)


def refused(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        export(*arguments, **keys)
    return str(error.value)


@pytest.fixture(scope="module")
def routed(runs: Runs) -> Path:
    """A run of FedSM, which takes longer to train than a unit test may."""
    return runs("pictures", "fedsm", data={"outside": []}) / "run"


def test_routed_models_are_refused(routed: Path) -> None:
    assert "FedSM predicts at new sites with a RoutedPredictor" in refused(routed, "torch")
    assert refused(routed, "torch", site="a").endswith("use --global")


def test_adapted_models_are_refused(runs: Runs) -> None:
    adapted = runs("pictures", "fedavg", **{"algorithm.outside": "tent", "task.network.norm": "batch"}) / "run"
    message = refused(adapted, "torch", site="b")
    assert "at site 'b' FedAvg adapts its model to the images (algorithm.outside=tent)" in message
    assert message.endswith("use --global or --site a")


def test_a_method_without_a_global_model(runs: Runs) -> None:
    personal = runs("pictures", "localonly") / "run"
    assert "LocalOnly has no model for new sites; use --site a" in refused(personal, "torch")
    assert "LocalOnly has no global model" in refused(personal, "torch", use_global=True)
    assert not (personal / "exports").exists()


def test_other_wrong_exports(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs("rows") / "run"
    assert "--format bundle needs a task of images, and the run has task=tabular; use --format torch" in refused(
        folder, "bundle"
    )
    assert "exclude each other" in refused(folder, "torch", site="a", use_global=True)
    (tmp_path / "x").write_text("")
    assert "an export never overwrites files" in refused(folder, "torch", out=tmp_path / "x")
    monkeypatch.setattr("raysim.federation.export.ONNX_PACKAGES", ("no_such_package",))
    assert "pip install 'raysim[onnx]'" in refused(folder, "onnx")


@pytest.mark.parametrize(
    ("kind", "output", "names"),
    [
        ("pictures", "segmentation", ["background", "foreground"]),
        ("labels", "multilabel classification", ["edema", "effusion"]),
        ("numbers", "regression", ["age"]),
    ],
)
def test_the_metadata_of_a_bundle(runs: Runs, tmp_path: Path, kind: str, output: str, names: list[str]) -> None:
    bundle = export(runs(kind) / "run", "bundle", out=tmp_path / "b")
    found = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert (found["format"], list(found["channel_def"].values())) == (output, names)
