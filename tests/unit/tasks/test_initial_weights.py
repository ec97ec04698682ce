"""Initial weights of a network from files, runs and bundles."""

from __future__ import annotations

import pickle
import resource
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from raysim import ConfigError, Model, Task, weights
from raysim.core.network_factories import PretrainedNetwork
from raysim.data import memory_limit
from raysim.storage import checkpoint
from raysim.tasks.initial_weights import MAX_URL_BYTES, read_weights, with_initial_weights
from raysim.tasks.networks import network_factory
from raysim.tasks.synthetic import Synthetic, SyntheticData

FACTORY = partial(nn.Linear, 2, 3)
NETWORK = {"name": "unet", "channels": [2, 4], "strides": [2]}
DATA = SyntheticData(sites=2, cases=2, val=0, test=1, size=(16, 16))


def tensors(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(2.0 * rows).reshape(rows, 2), "bias": torch.ones(rows)}


def loaded(source: Path | str, **keys: Any) -> Model:
    factory = with_initial_weights(FACTORY, {"weights": str(source), **keys})
    assert isinstance(factory, PretrainedNetwork)
    return weights(factory())


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_without_weights_the_factory_is_unchanged() -> None:
    assert with_initial_weights(FACTORY, {"name": "x", "weights": None}) is FACTORY


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_reads_the_state_dict_of_a_torch_file(tmp_path: Path, nested: str | None) -> None:
    path = tmp_path / "model.pt"
    torch.save({nested: tensors(), "epoch": 3} if nested else tensors(), path)
    assert loaded(path)["weight"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_reads_safetensors_of_other_float_types(tmp_path: Path) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in tensors().items()}, tmp_path / "a.safetensors")
    model = loaded(tmp_path / "a.safetensors")
    assert (model["weight"].dtype, model["weight"][2, 1]) == (np.float32, 5)


def test_reads_a_run_and_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "run" / "models").mkdir(parents=True)
    save_file(tensors(), tmp_path / "run" / "models" / "global.safetensors")
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    torch.save(tensors(), tmp_path / "bundle" / "models" / "model.pt")
    assert loaded(tmp_path / "run") == loaded(tmp_path / "bundle")


def test_reads_the_state_of_the_best_round_of_a_run_without_models(tmp_path: Path) -> None:
    for folder, number in (("checkpoints", 3), ("best", 2)):
        state = Model.of({name: tensor.numpy() + number for name, tensor in tensors().items()})
        checkpoint.write(tmp_path / folder, number, state, {})
    assert loaded(tmp_path)["bias"].tolist() == [3, 3, 3]


def test_reads_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/weights/a.safetensors", save(tensors()))
    assert loaded("memory://weights/a.safetensors")["bias"].tolist() == [1, 1, 1]
    monkeypatch.setattr("raysim.tasks.initial_weights.MAX_URL_BYTES", 10)
    with pytest.raises(ConfigError, match="is larger than 10 B; download"):
        loaded("memory://weights/a.safetensors")
    assert MAX_URL_BYTES > 10**9


def test_a_file_that_matches_partly_is_refused_unless_this_is_allowed(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(4), "more": torch.ones(1)}, tmp_path / "a.safetensors")
    expected = (
        r"of another shape: bias float32\(4,\), not \(3,\); not in the network: more.*load only the 1 matching tensor"
    )
    with pytest.raises(ConfigError, match=expected):
        loaded(tmp_path / "a.safetensors")
    model = loaded(tmp_path / "a.safetensors", weights_partial=True)
    assert model["weight"].tolist() == [[1, 1]] * 3
    assert model["bias"].tolist() != [1, 1, 1]


def test_reads_parameters_with_gradients(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 3).named_parameters()), tmp_path / "a.pt")
    assert set(loaded(tmp_path / "a.pt")) == {"weight", "bias"}


def a_bytearray(size: int) -> bytes:
    """A pickle of few bytes that makes a bytearray."""
    return b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", size) + b"\x85R."


def copies(size: int, count: int) -> bytes:
    """A pickle that encodes a text of `size` characters `count` times, as 4 bytes each."""
    text = (
        b"\x80\x02c_codecs\nencode\nX"
        + struct.pack("<I", size)
        + b"a" * size
        + b"X\x06\0\0\0utf-32\x86q\x000c_codecs\nencode\nq\x010"
    )
    return text + b"](" + b"h\x01h\x00R" * count + b"e."


@pytest.mark.parametrize("pickled", [a_bytearray(2_000_000_000), copies(100_000, 5_000)], ids=["bytearray", "copies"])
def test_a_small_file_that_takes_much_memory_is_refused(tmp_path: Path, pickled: bytes) -> None:
    torch.save(tensors(), tmp_path / "intact.pt")
    with zipfile.ZipFile(tmp_path / "intact.pt") as intact, zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in intact.namelist():
            archive.writestr(name, pickled if name.endswith("data.pkl") else intact.read(name))
    assert (tmp_path / "a.pt").stat().st_size < 200_000
    before = peak_memory()
    with pytest.raises(ConfigError, match="or takes much more memory than its size"):
        loaded(tmp_path / "a.pt")
    assert peak_memory() - before < 1_000_000_000
    torch.empty(1_000_000_000, dtype=torch.uint8)  # the limit is removed


def test_a_file_that_is_much_larger_than_its_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors() | {"more": torch.zeros(500_000)}, tmp_path / "w.safetensors")
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "w.safetensors", "w.safetensors")
    url = f"zip://w.safetensors::{tmp_path / 'w.zip'}"
    assert "more" in read_weights(url).tensors
    monkeypatch.setattr(memory_limit, "ANY_FILE", 3_000_000)
    with pytest.raises(ConfigError, match=r"w.zip is larger than 1.0 MB; download or unpack it and name the file"):
        read_weights(url)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("executed").touch, ())


@pytest.mark.parametrize("content", [pickle.dumps(Code()), b"text", b""])
def test_a_file_with_code_or_without_tensors_is_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="has no tensors that can be read without running its code"):
            loaded(tmp_path / name)
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "whole.pt")
    with pytest.raises(ConfigError, match="without running its code"):
        loaded(tmp_path / "whole.pt")
    assert not (tmp_path / "executed").exists()


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    save_file({"weight": torch.full((3, 2), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / "notes.txt").write_text("")
    for name, error in {
        "none.pt": "there is no such file or folder",
        "epoch.pt": "has no state dict",
        "nan.safetensors": "'weight' has values that are not finite",
        "x.safetensors": "has no tensor with a name and shape of the network",
        "notes.txt": "expected a .safetensors, .pt or .pth file",
        ".": "the folder is neither a run",
    }.items():
        with pytest.raises(ConfigError, match=error):
            loaded(tmp_path / name, weights_partial=True)


def task(**network: Any) -> Task:
    return Synthetic(data=DATA, network=NETWORK | network, batch_size=2).build()


def test_a_task_starts_from_the_weights_and_contains_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(task().start(7).state_dict(), path)
    built = task(weights=str(path))
    path.unlink()
    sent = pickle.loads(pickle.dumps(built))
    assert weights(sent.start(0)) == weights(built.start(1)) == weights(task().start(7))
    assert weights(task().start(0)) != weights(task().start(7))


def test_the_encoder_of_a_network_with_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(task(out_channels=2).start(7).state_dict(), path)
    factory = network_factory(NETWORK, spatial_dims=2, in_channels=1, out_channels=4, size=(16, 16))
    built = with_initial_weights(factory, {"weights": str(path), "weights_partial": True})
    assert isinstance(built, PretrainedNetwork)
    names = {text.partition(" ")[0] for text in built.initial.mismatched}
    assert names
    assert all(name.startswith("model.2.") for name in names)
    assert read_weights(str(path)).tensors.keys() == weights(built()).keys()
