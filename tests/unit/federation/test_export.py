"""Exports of a finished run: torch.export, ONNX, a MONAI bundle that predicts as raysim does, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raysim import ConfigError
from raysim.distributed.finished_runs import predict
from raysim.federation.export import export
from tests.support.trained import trained

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a finished run, which tests share."""
    made: dict[str, Path] = {}

    def get(kind: str, algorithm: str = "fedavg", **keys: Any) -> Path:
        key = f"{kind}-{algorithm}-{len(keys)}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / key
            trained(made[key], kind, algorithm, **keys)
        return made[key]

    return get


def logits(folder: Path, inputs: torch.Tensor) -> Any:
    """The logits of models/global.safetensors, of the best round."""
    from raysim import load_config
    from raysim.config.merge import read_file

    net = load_config(read_file(str(folder / "run" / "config.yaml"))).task.build().network()
    net.load_state_dict(load_file(folder / "run" / "models" / "global.safetensors"))
    return net.eval()(inputs).detach()


@pytest.mark.parametrize("kind", ["pictures", "rows"])
def test_a_torch_program_has_the_logits_of_the_global_model(kind: str, runs: Runs) -> None:
    folder = runs(kind)
    path = export(folder / "run", "torch")
    assert path.parent == folder / "run" / "exports"
    assert path.name.startswith("new-site-round-")
    inputs = torch.rand(3, 1, 12, 20) if kind == "pictures" else torch.rand(3, 3)
    found = torch.export.load(path).module()(inputs)
    assert torch.allclose(found, logits(folder, inputs), atol=1e-5)


@pytest.mark.parametrize("kind", ["pictures", "volumes", "classes"])
def test_an_onnx_program_has_the_logits_of_the_global_model(kind: str, runs: Runs, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = runs(kind)
    path = export(folder / "run", "onnx", out=tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    inputs = torch.rand(3, *shape)
    (found,) = session.run(None, {"inputs": inputs.numpy()})
    assert np.allclose(found, logits(folder, inputs), atol=1e-5)


@pytest.mark.parametrize("kind", ["pictures", "volumes", "slices", "classes"])
def test_a_bundle_predicts_as_raysim(kind: str, runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("fire")
    folder, suffix = runs(kind), ".png" if kind in ("pictures", "classes") else ".nii"
    bundle, images = export(folder / "run", "bundle", out=tmp_path / "bundle"), tmp_path / "images"
    images.mkdir()
    for number in range(6):
        (images / f"{number}{suffix}").write_bytes((folder / f"{number}{suffix}").read_bytes())
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", "."]
    command += ["--dataset_dir", str(images), "--output_dir", str(tmp_path / "found")]
    ran = subprocess.run([sys.executable, *command], cwd=bundle, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    predict(folder / "run", str(images), tmp_path / "expected")
    if kind == "classes":
        found = pd.read_csv(tmp_path / "found" / "predictions.csv", header=None).iloc[:, 1:]
        expected = pd.read_csv(tmp_path / "expected" / "predictions.csv")[["probability_sick", "probability_well"]]
        assert np.allclose(found, expected, atol=1e-4)
        return
    for number in range(6):
        if kind == "pictures":
            found, expected = (
                np.asarray(Image.open(tmp_path / name / f"{number}.png")) for name in ("found", "expected")
            )
        else:
            one = nibabel.load(tmp_path / "found" / f"{number}.nii.gz")
            other = nibabel.load(tmp_path / "expected" / f"{number}.nii")
            assert np.allclose(one.affine, other.affine)
            found, expected = np.asarray(one.dataobj), np.asarray(other.dataobj)
        assert found.shape == expected.shape
        assert (found == expected).mean() > 0.995


def refused(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        export(*arguments, **keys)
    return str(error.value)


def test_what_is_not_one_network_is_refused_with_what_can_be_exported(runs: Runs) -> None:
    routed = runs("pictures", "fedsm", data={"outside": []}) / "run"
    assert "FedSM predicts at new sites with a RoutedPredictor" in refused(routed, "torch")
    assert refused(routed, "torch", site="a").endswith("what can be exported: --global")
    assert export(routed, "torch", use_global=True).name.startswith("global-round-")
    adapted = runs("pictures", "fedavg", **{"algorithm.outside": "tent", "task.network.norm": "batch"}) / "run"
    message = refused(adapted, "torch", site="b")
    assert "at site 'b' FedAvg adapts its model to the images (algorithm.outside=tent)" in message
    assert message.endswith("what can be exported: --global or --site a")
    personal = runs("pictures", "localonly") / "run"
    assert "LocalOnly has no model for new sites; what can be exported: --site a" in refused(personal, "torch")
    assert "LocalOnly has no global model" in refused(personal, "torch", use_global=True)
    assert not (personal / "exports").exists()


def test_other_wrong_exports(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs("rows") / "run"
    assert "--format bundle needs a task with image files" in refused(folder, "bundle")
    assert "exclude each other" in refused(folder, "torch", site="a", use_global=True)
    (tmp_path / "x").write_text("")
    assert "an export never overwrites files" in refused(folder, "torch", out=tmp_path / "x")
    monkeypatch.setattr("raysim.federation.export.ONNX_PACKAGES", ("no_such_package",))
    assert "pip install 'raysim[onnx]'" in refused(folder, "onnx")
    metadata = json.loads(
        (export(runs("pictures") / "run", "bundle", out=tmp_path / "b") / "configs" / "metadata.json").read_text()
    )
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "foreground"}
