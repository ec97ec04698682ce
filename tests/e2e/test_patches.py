"""Runs on patches: resumed, on Ray, predicted and evaluated; the probabilities are those of MONAI's sliding window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers.inferer import SlidingWindowInferer

from raysim import RoundEvent, RunResult, export, load, resume, run
from raysim.core.events import Event
from raysim.distributed.finished_run_commands import evaluate, predict
from raysim.federation.trained_run import open_run
from tests.support.paths import DATA
from tests.support.trained import trained
from tests.support.wrong_files import write_data_sets

PATCHES = {"patch": [8, 8, 4], "size": None, "spacing": None, "fit": "resize"}


def with_patches(folder: Path, **keys: Any) -> RunResult:
    return trained(folder, "volumes", data=PATCHES, **keys)


def test_probabilities_are_those_of_monai(tmp_path: Path) -> None:
    with_patches(tmp_path, **{"task.window": {"overlap": 0.25, "batch_size": 2}})
    predict(tmp_path / "run", str(tmp_path / "volumes.csv"), tmp_path / "out", probabilities=True)
    trained_run = open_run(tmp_path / "run")
    net = trained_run.config.task.build().network().eval()
    load(net, trained_run.point.state)
    image = nibabel.load(tmp_path / "0.nii").get_fdata(dtype=np.float32)
    scaled = torch.from_numpy((image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)).float()[None, None]
    with torch.no_grad():
        expected = SlidingWindowInferer((8, 8, 4), 2, 0.25, mode="gaussian")(scaled, net).softmax(1)[0]
    found = nibabel.load(tmp_path / "out" / "0_probabilities.nii").get_fdata()
    assert np.abs(np.moveaxis(found, -1, 0) - expected.numpy()).max() < 1e-6
    mask = np.asarray(nibabel.load(tmp_path / "out" / "0.nii").dataobj)
    assert np.array_equal(mask, found.argmax(-1))


def test_scores_of_a_prediction_and_of_an_evaluation_are_those_of_the_run(tmp_path: Path) -> None:
    summary = with_patches(tmp_path).summary
    evaluate(tmp_path / "run", {}, out=tmp_path / "evaluated", round="last")
    found = json.loads((tmp_path / "evaluated" / "summary.json").read_text())
    assert found["metrics"] == summary["metrics"]


def test_a_cropped_image_is_predicted_on_its_own_grid(tmp_path: Path) -> None:
    trained(tmp_path, "volumes", data={**PATCHES, "crop_nonzero": True})
    image = np.zeros((20, 18, 9), np.uint8)
    image[3:17, 2:16, 2:7] = 90
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "new.nii")
    (tmp_path / "new.csv").write_text("image\nnew.nii\n")
    predict(tmp_path / "run", str(tmp_path / "new.csv"), tmp_path / "out", probabilities=True)
    probabilities = nibabel.load(tmp_path / "out" / "new_probabilities.nii").get_fdata()
    assert probabilities.shape == (20, 18, 9, 2)
    assert (probabilities[:3, ..., 0] == 1).all()
    assert (probabilities[3:17, 2:16, 2:7, 0] < 1).all()


def test_computed_keys_are_those_of_the_run(tmp_path: Path) -> None:
    result = trained(tmp_path, "volumes", data={**PATCHES, "spacing": "median", "intensity": "ct"})
    assert set(result.summary["computed"]) == {"spacing", "clip", "scale"}
    data = open_run(tmp_path / "run").config.task.data
    assert {key: list(getattr(data, key)) for key in ("spacing", "clip", "scale")} == {
        key: list(value) for key, value in result.summary["computed"].items()
    }
    evaluated = evaluate(tmp_path / "run", {}, out=tmp_path / "evaluated", round="last")
    assert evaluated.metrics == result.metrics


def test_a_resumed_run_draws_the_same_patches(tmp_path: Path) -> None:
    calm = with_patches(tmp_path / "calm")

    def stop(event: Event) -> None:
        if isinstance(event, RoundEvent) and event.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_patches(tmp_path / "stopped", on_event=stop)
    assert resume(tmp_path / "stopped" / "run").digest == calm.digest


@pytest.mark.slow
def test_a_killed_client_actor_changes_no_bits(tmp_path: Path, ray_started: None) -> None:
    calm = with_patches(tmp_path / "calm", backend="ray")
    killed = with_patches(tmp_path / "killed", backend="ray", chaos="kill client@2")
    assert (tmp_path / "killed" / "run" / "failures.jsonl").read_text()
    assert killed.digest == calm.digest


def test_a_run_with_nnunet_plans_trains_all_resolutions_and_is_exported(tmp_path: Path) -> None:
    stages = {"features_per_stage": [2, 4, 4, 4], "kernel_sizes": [[3, 3, 3]] * 4, "n_conv_per_stage": 2}
    stages["strides"] = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]]
    architecture = {"network_class_name": "architectures.unet.PlainConvUNet", "arch_kwargs": stages}
    configuration = {"patch_size": [4, 16, 16], "spacing": [1, 1, 1], "architecture": architecture}
    (tmp_path / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": configuration}}))
    write_data_sets(tmp_path)
    task = {
        "name": "segmentation",
        "data": {"table": str(tmp_path / "volumes.csv"), "cache": str(tmp_path / "cache")},
        "network": {"name": "nnunet", "plans": str(tmp_path / "plans.json")},
        "batch_size": 2,
    }
    result = run({"backend": "local", "rounds": 1, "task": task, "algorithm.name": "fedavg"}, out=tmp_path / "run")
    config = open_run(tmp_path / "run").config.task
    assert (config.data.patch, config.network["deep_supr_num"]) == ((16, 16, 4), 1)
    assert 0 <= result.metrics["inside/val/dice"]["mean"] <= 1
    assert export(tmp_path / "run", "bundle").exists()


@pytest.mark.slow
def test_ray_gives_the_same_bits(tmp_path: Path, ray_started: None) -> None:
    local, on_ray = with_patches(tmp_path / "local"), with_patches(tmp_path / "ray", backend="ray")
    assert local.digest == on_ray.digest
    assert local.metrics == on_ray.metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("hippocampus_3d", {"patch": [32, 32, 32], "classes": ["background", "anterior", "posterior"]}),
        ("acdc_cardiac", {"patch": [48, 48, 4], "classes": ["background", "right", "myocardium", "left"]}),
        ("acdc_cardiac", {"patch": [64, 64], "slices": True, "classes": ["background", "right", "myocardium", "left"]}),
    ],
)
def test_real_volumes(name: str, data: dict[str, Any], tmp_path: Path) -> None:
    table = DATA / name / "table.csv"
    if not table.exists():
        pytest.skip(f"needs {table}")
    sites = {"partition": {"name": "iid", "sites": 2}} if name == "hippocampus_3d" else {}
    keys = {
        "task": {
            "name": "segmentation",
            "data": {"table": str(table), "cache": str(tmp_path / "cache"), "patches_per_image": 1, **data, **sites},
            "network": {"name": "unet", "channels": [4, 8, 16], "strides": [2, [2] * (len(data["patch"]) - 1) + [1]]},
            "window": {"overlap": 0},
        },
        "algorithm": {"name": "fedavg", "steps": 2},
    }
    result = run({**keys, "backend": "local", "rounds": 1}, out=tmp_path / "run")
    assert 0 <= result.metrics["inside/test/dice"]["mean"] <= 1
