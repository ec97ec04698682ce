"""Checkpoints: written and read bit by bit; damage is detected; two are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysim import Model, load, weights
from raysim.core.errors import RunError
from raysim.storage.checkpoint import newest_first, read, write
from tests.support.toy import Scaled


def model(value: float = 1) -> Model:
    return Model.of({"w": np.full(2, value, np.float32)})


def test_a_checkpoint_is_read_as_written(tmp_path: Path) -> None:
    client_states = {"a": None, "b": {"bank": [model(2)], "count": 3}}
    path = write(tmp_path, 7, model(), client_states)
    start = read(path)
    assert path.name == "round_0007"
    assert (start.number, start.state, start.client_states) == (7, model(), client_states)


def test_a_network_with_counters_is_restored(tmp_path: Path) -> None:
    # BatchNorm counts batches in an array with zero dimensions.
    kept = weights(Scaled())
    start = read(write(tmp_path, 1, kept, {"a": kept.buffers}))
    assert start.state == kept
    assert start.client_states["a"] == kept.buffers
    load(Scaled(), start.state)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10):
        write(tmp_path, number, model(), {})
    assert [path.name for path in newest_first(tmp_path)] == ["round_0010", "round_0009"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_0009", "round_0010"]


def test_rounds_are_ordered_as_numbers(tmp_path: Path) -> None:
    for number in (9999, 10000):
        write(tmp_path, number, model(), {})
    assert next(newest_first(tmp_path)).name == "round_10000"


def test_a_round_may_be_written_again(tmp_path: Path) -> None:
    # This happens if the run resumed from the previous checkpoint because this one was damaged.
    write(tmp_path, 1, model(1), {"a": model()})
    start = read(write(tmp_path, 1, model(2), {}))
    assert (start.state, start.client_states) == (model(2), {})


@pytest.mark.parametrize(
    "file", ["state.safetensors", "state.json", "client_states/a.safetensors", "client_states/a.json"]
)
def test_a_changed_bit_is_found(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1, model(), {"a": model()})
    content = bytearray((path / file).read_bytes())
    content[-1] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(RunError, match=f"is damaged: {file} has changed"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80", b"{}"])
def test_a_damaged_index_is_a_run_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, 1, model(), {})
    (path / "checkpoint.json").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        read(path)


def test_a_missing_file_is_a_run_error(tmp_path: Path) -> None:
    path = write(tmp_path, 1, model(), {"a": 1})
    (path / "client_states" / "a.json").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        read(path)


def test_an_unsupported_state_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, model(), {})
    with pytest.raises(TypeError, match="a checkpoint cannot store the set at ''"):
        write(tmp_path, 2, {1}, {})
    assert [path.name for path in newest_first(tmp_path)] == ["round_0001"]
