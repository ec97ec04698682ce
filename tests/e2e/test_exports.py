"""Exports of a finished run: torch.export, ONNX, and a MONAI bundle that predicts as raysim does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raysim.distributed.finished_run_commands import predict
from raysim.federation.export import export
from tests.support.trained import Runs, shared_runs

COLUMNS = {  # of predictions.csv
    "classes": ["probability_sick", "probability_well"],
    "labels": ["probability_edema", "probability_effusion"],
    "numbers": ["prediction"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a finished run, which tests share."""
    return shared_runs(tmp_path_factory.mktemp)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "volumes", "classes", "labels", "numbers"])
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "volumes", "slices", "classes", "labels", "numbers"])
def test_a_bundle_predicts_as_raysim(kind: str, runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("fire")
    folder, suffix = runs(kind), ".nii" if kind in ("volumes", "slices") else ".png"
    bundle, images = export(folder / "run", "bundle", out=tmp_path / "bundle"), tmp_path / "images"
    images.mkdir()
    for number in range(6):
        (images / f"{number}{suffix}").write_bytes((folder / f"{number}{suffix}").read_bytes())
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", "."]
    command += ["--dataset_dir", str(images), "--output_dir", str(tmp_path / "found")]
    ran = subprocess.run([sys.executable, *command], cwd=bundle, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    predict(folder / "run", str(images), tmp_path / "expected")
    if kind in COLUMNS:
        found = pd.read_csv(tmp_path / "found" / "predictions.csv", header=None).iloc[:, 1:]
        expected = pd.read_csv(tmp_path / "expected" / "predictions.csv")[COLUMNS[kind]]
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
