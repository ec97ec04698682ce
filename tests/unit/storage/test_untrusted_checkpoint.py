"""Malicious checkpoints: reading them runs no code and reads no other files."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysim.core.errors import RunError
from raysim.core.model import Model
from raysim.storage import checkpoint


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint with one site."""
    model = Model.of({"w": np.ones(3, np.float32)})
    return checkpoint.write(tmp_path / "checkpoints", 1, model, {"a": {"n": 1}})


def forge(path: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, with its correct SHA-256 sum."""
    index = json.loads((path / "checkpoint.json").read_text())
    (path / name).write_bytes(content)
    index["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_loaded(written: Path, name: str, tmp_path: Path) -> None:
    forge(written, name, pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(RunError):
        checkpoint.read(written)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "named",
    ["os:system", "subprocess:Popen", "raysim.__main__:main", "raysim.storage.event_log:EventLog", "antigravity:x"],
)
def test_only_trusted_dataclasses_are_loaded(written: Path, named: str) -> None:
    forge(written, "state.json", json.dumps({"dataclass": named, "fields": {}}).encode())
    with pytest.raises(RunError, match=r"not in a module of raysim|not a dataclass"):
        checkpoint.read(written, trusted=["my_algorithm"])


def test_names_outside_the_checkpoint_are_refused(written: Path, tmp_path: Path) -> None:
    index = json.loads((written / "checkpoint.json").read_text())
    (tmp_path / "outside").touch()
    for forged in ({"sites": ["../../../outside"]}, {"sha256": {str(tmp_path / "outside"): "0"}}):
        (written / "checkpoint.json").write_text(json.dumps({**index, **forged}))
        with pytest.raises(RunError, match="outside its folder, so raysim did not write it"):
            checkpoint.read(written)


@pytest.mark.parametrize(
    "named",
    [
        "raysim.core.model:np.random.mtrand.RandomState",
        "raysim.storage.recorder:asdict.__globals__",
        "raysim.config.resolve:RunConfig",  # a dataclass of raysim, but of another module
        "raysim.storage.serialization:import_module",
        "raysim.missing:State",
        "raysim.core.model:",
    ],
)
def test_only_classes_of_the_named_module_are_loaded(written: Path, named: str) -> None:
    forge(written, "state.json", json.dumps({"dataclass": named, "fields": {}}).encode())
    with pytest.raises(RunError, match=r"not a dataclass|which is defined in raysim.config.schema|No module named"):
        checkpoint.read(written)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"tuple": 3}', b'{"array": []}', b'{"model": [1], "at": ""}'])
def test_odd_states_are_refused(written: Path, content: bytes) -> None:
    for name in ("state.json", "client_states/a.json"):
        forge(written, name, content)
    with pytest.raises(RunError, match="cannot be read"):
        checkpoint.read(written)


def test_an_odd_client_state_and_index_are_refused(written: Path) -> None:
    forge(written, "client_states/a.json", b'{"array": 3, "tensor": true}')
    with pytest.raises(RunError, match=r"the state of site a in checkpoint .* cannot be read"):
        checkpoint.read(written).client_states["a"]
    for content in ("[]", "7", '{"sha256": {}, "sites": []}'):
        (written / "checkpoint.json").write_text(content)
        with pytest.raises(RunError, match="cannot be read"):
            checkpoint.read(written)
