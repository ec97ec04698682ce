"""A run starts from the weights of another one, trains a part, is resumed without the file, and is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import raysim
from raysim.core.network_factories import base_factory

KEYS: dict[str, Any] = {
    "task.data": {"sites": 2, "cases": 2, "val": 1, "test": 1, "size": [16, 16]},
    "task.batch_size": 2,
    "backend": "local",
    "pictures": False,
}
NETWORK = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_from_weights_to_a_continued_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raysim.run({**KEYS, "task.network": NETWORK, "rounds": 1}, out="first")
    keys = {**KEYS, "task.network": {**NETWORK, "weights": "first"}, "algorithm.trainable": ["model.2.*"], "rounds": 2}
    config = raysim.load_config(keys)
    done = tmp_path / "second"
    raysim.run(keys, out=done)
    given, trained = (load_file(folder / "models/global.safetensors") for folder in (Path("first"), done))
    base_factory(config.task.build().network)().load_state_dict(trained, strict=True)
    changed = {name for name in trained if not trained[name].equal(given[name])}
    assert changed
    assert all(name.startswith("model.2.") for name in changed)
    assert json.loads((done / "env.json").read_text())["initial_weights"]["loaded"] == sorted(given)

    shutil.rmtree("first")
    shutil.copytree(done, "third")
    Path("third/summary.json").unlink()
    shutil.rmtree("third/checkpoints/round_0002")
    raysim.resume("third")
    assert summary(Path("third"))["digest"] == summary(done)["digest"]

    raysim.run({**keys, "rounds": 3}, out="fourth", continue_from=done)
    assert summary(Path("fourth"))["continued"] == {"run": str(done), "after_round": 2, "difference": None}
    assert summary(Path("fourth"))["rounds"] == 3


def test_pre_training_leaves_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raysim.run({**KEYS, "task.network": NETWORK, "rounds": 2, "algorithm": "fedsimclr"}, out="pretrained")
    encoder = load_file("pretrained/models/encoder.safetensors")
    network = {**NETWORK, "weights": "pretrained/models/encoder.safetensors", "weights_partial": True}
    started = raysim.load_config({**KEYS, "task.network": network}).task.build().start(5).state_dict()
    assert 0 < len(encoder) < len(started)
    assert all(started[name].equal(tensor) for name, tensor in encoder.items())
