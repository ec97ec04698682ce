"""Evaluation, prediction and export of a run that started from weights and trained a part of the network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.networks.nets import UNETR
from safetensors.torch import load_file

from raysim import RunResult, evaluate, export, predict, run
from raysim.tasks.lora import with_lora
from tests.support.trained import UNET, trained
from tests.support.wrong_files import write_data_sets

SIZE = {"size": [16, 16]}  # that of the images
SIZES = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
LORA = {"name": "unetr", **SIZES, "lora": {"rank": 2, "targets": ["qkv"]}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that trained the last layer; the file of its initial weights does not exist any more."""
    network = {**UNET, "norm": "batch"}
    folder = tmp_path_factory.mktemp("parts")
    first = trained(folder / "first", "pictures", data=SIZE, **{"task.network": network})
    network["weights"] = str(first.path / "models" / "global.safetensors")
    keys = {"task.network": network, "algorithm.trainable": ["model.2.*"], "seed": 1}
    result = trained(folder / "second", "pictures", data=SIZE, **keys)
    (first.path / "models" / "global.safetensors").unlink()
    return result


def check_evaluation(finished: RunResult, out: Path) -> None:
    found = evaluate(finished.path, {}, round="last", out=out)
    assert found.metrics == finished.metrics


def check_program(finished: RunResult, shape: tuple[int, ...], out: Path) -> None:
    program = torch.export.load(export(finished.path, "torch", round="best", out=out))
    saved = load_file(finished.path / "models" / "global.safetensors")
    assert set(saved) == set(program.state_dict)
    assert all(torch.equal(saved[name], tensor) for name, tensor in program.state_dict.items())
    assert program.module()(torch.zeros(3, *shape)).shape == (3, 2, *shape[1:])


def test_the_evaluation_has_the_scores_of_the_run(finished: RunResult, tmp_path: Path) -> None:
    check_evaluation(finished, tmp_path / "out")


def test_the_program_has_the_tensors_that_were_not_trained(finished: RunResult, tmp_path: Path) -> None:
    check_program(finished, (1, 16, 16), tmp_path / "x.pt2")


def test_the_prediction_has_the_scores_of_the_run(finished: RunResult, tmp_path: Path) -> None:
    predict(finished.path, str(finished.path.parent / "table.csv"), tmp_path / "out", round="last")
    of_run = dice(finished.path).query("site == 'b'")["value"]
    assert len(of_run)
    assert dice(tmp_path / "out")["value"][of_run.index].to_list() == pytest.approx(of_run.to_list(), abs=1e-6)


def dice(folder: Path) -> Any:
    """The Dice scores of the last round by image."""
    return pd.read_parquet(folder / "cases.parquet").query("metric == 'dice' and last").set_index("image")


def test_a_run_with_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    write_data_sets(tmp_path)
    data = {"table": str(tmp_path / "table.csv"), "size": [32, 32]}
    task = {"name": "segmentation", "batch_size": 2, "network": LORA, "data": data}
    keys = {"rounds": 1, "task": task, "algorithm.trainable": ["*lora_*", "out.*"]}
    finished = run(keys, backend="local", out=tmp_path / "run")
    check_evaluation(finished, tmp_path / "evaluation")
    predict(finished.path, str(tmp_path / "table.csv"), tmp_path / "masks")
    check_merged_exports(finished, tmp_path)


def check_merged_exports(finished: RunResult, folder: Path) -> None:
    """The program and the bundle have the outputs of the network with adapters, and need no peft."""
    bundle = export(finished.path, "bundle", out=folder / "bundle")
    target, *arguments = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"].items()
    assert target == ("_target_", "monai.networks.nets.unetr.UNETR")
    plain = UNETR(**dict(arguments)).eval()
    plain.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    adapted = with_lora(partial(UNETR, **dict(arguments)), LORA)().eval()
    adapted.load_state_dict(load_file(finished.path / "models" / "global.safetensors"))
    program = torch.export.load(export(finished.path, "torch", out=folder / "merged.pt2")).module()
    inputs = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    expected = adapted(inputs)
    assert (plain(inputs) - expected).abs().max() < 1e-5
    assert (program(inputs) - expected).abs().max() < 1e-5
