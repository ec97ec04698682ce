"""Checkpoints made to harm: reading them runs nothing and leads nowhere else."""

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
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint of one site."""
    model = Model.of({"w": np.ones(3, np.float32)})
    return checkpoint.write(tmp_path / "checkpoints", 1, model, {"a": {"n": 1}})


def forge(path: Path, name: str, content: bytes) -> None:
    """Put another file into a checkpoint, with the sum that fits it."""
    index = json.loads((path / "checkpoint.json").read_text())
    (path / name).write_bytes(content)
    index["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_opened(written: Path, name: str, tmp_path: Path) -> None:
    forge(written, name, pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(RunError):
        checkpoint.read(written)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "named",
    ["os:system", "subprocess:Popen", "raysim.__main__:main", "raysim.storage.event_log:EventLog", "antigravity:x"],
)
def test_a_checkpoint_gets_no_class_but_dataclasses_of_raysim(written: Path, named: str) -> None:
    forge(written, "state.json", json.dumps({"dataclass": named, "fields": {}}).encode())
    with pytest.raises(RunError, match=r"neither raysim's|not a dataclass"):
        checkpoint.read(written, trusted=["my_algorithm"])


def test_a_checkpoint_leads_nowhere_else(written: Path, tmp_path: Path) -> None:
    index = json.loads((written / "checkpoint.json").read_text())
    (tmp_path / "outside").touch()
    for forged in ({"sites": ["../../../outside"]}, {"sha256": {str(tmp_path / "outside"): "0"}}):
        (written / "checkpoint.json").write_text(json.dumps({**index, **forged}))
        with pytest.raises(RunError, match="outside of it"):
            checkpoint.read(written)
