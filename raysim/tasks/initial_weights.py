"""Reads the initial weights of a network from a file, a run or a MONAI bundle, and matches them with the network."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from raysim.core.contracts import Array
from raysim.core.errors import ConfigError, RunError
from raysim.core.formatting import format_bytes, pluralize
from raysim.core.model import Model, weights
from raysim.core.network_factories import InitialWeights, NetworkFactory, PretrainedNetwork
from raysim.core.seeding import seeded
from raysim.data.file_paths import check_url, stored_bytes
from raysim.data.memory_limit import ANY_FILE, limited_memory, memory_limit
from raysim.storage import checkpoint
from raysim.storage.model_files import GLOBAL_FILE
from raysim.storage.run_directory import BEST, CHECKPOINTS
from raysim.tasks.network_keys import PARTIAL, WEIGHTS

KEY = f"task.network.{WEIGHTS}"
MAX_URL_BYTES = 8_000_000_000  # of a file at a URL
TORCH_SUFFIXES = (".pt", ".pth")
STATE_KEYS = ("state_dict", "model", "network")  # keys that training scripts use for the weights


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file by name, the path of the file, and its SHA-256."""

    path: str
    sha256: str
    tensors: Mapping[str, Tensor]


def with_initial_weights(factory: NetworkFactory, spec: Mapping[str, Any]) -> NetworkFactory:
    """The factory of the same network with the initial weights that `spec` names; without weights, `factory`.

    Raises ConfigError if the file cannot be read, or if tensors differ and `weights_partial` is not set.
    """
    source = spec.get(WEIGHTS)
    if source is None:
        return factory
    with seeded("initial_weights"):
        expected = weights(factory())
    initial = match_weights(read_weights(source), expected)
    if not initial.loaded:
        raise ConfigError(
            f"{KEY}={source} has no tensor with a name and shape of the network: {initial.differences}. "
            "Set task.network to the network of the file"
        )
    if initial.differences and not spec.get(PARTIAL, False):
        raise ConfigError(
            f"{KEY}={source} does not match the network: {initial.differences}. Correct task.network, or load only "
            f"the {pluralize(len(initial.loaded), 'matching tensor')}: task.network.{PARTIAL}=true"
        )
    return PretrainedNetwork(factory, initial)


def match_weights(file: WeightsFile, expected: Model) -> InitialWeights:
    """The tensors of `file` whose names and shapes match `expected`, converted to its dtypes, and the differences.

    Raises ConfigError for values that are not finite.
    """
    found, mismatched = dict[str, Array](), []
    for name, wanted in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != wanted.shape or tensor.is_floating_point() != (wanted.dtype.kind == "f"):
            mismatched.append(f"{name} {_describe(tensor)}, not {tuple(wanted.shape)}")
            continue
        values = (tensor.double() if tensor.is_floating_point() else tensor).detach().numpy()
        if not np.isfinite(values).all():
            raise ConfigError(f"{KEY}={file.path}: '{name}' has values that are not finite; use other weights")
        found[name] = values.astype(wanted.dtype)
    return InitialWeights(
        source=file.path,
        sha256=file.sha256,
        loaded=Model.of(found, expected.parameters),
        missing=tuple(name for name in expected if name not in file.tensors),
        unexpected=tuple(name for name in file.tensors if name not in expected),
        mismatched=tuple(mismatched),
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"


def read_weights(source: str) -> WeightsFile:
    """The tensors of a file, a URL, a run directory or a MONAI bundle. Raises ConfigError for any other source."""
    path = find_file(source)
    if Path(path).is_dir():
        return _read_checkpoint(Path(path))
    content = _read_bytes(path)
    return WeightsFile(path, hashlib.sha256(content).hexdigest(), _parse(path, content))


def find_file(source: str) -> str:
    """The file with the weights of `source`, or the checkpoint of the best or last round of a run.

    Raises ConfigError if there is none.
    """
    folder = Path(source)
    if "://" in source:
        return source
    if folder.is_file():
        return source
    if not folder.is_dir():
        raise ConfigError(f"{KEY}={source}: there is no such file or folder; check its path")
    for file in (Path("models") / GLOBAL_FILE, Path("models") / "model.pt"):
        if (folder / file).is_file():
            return str(folder / file)
    for checkpoints in (BEST, CHECKPOINTS):
        for path in checkpoint.newest_first(folder / checkpoints):
            return str(path)
    raise ConfigError(
        f"{KEY}={source}: the folder is neither a run with a global model or a checkpoint, nor a MONAI bundle with "
        "models/model.pt; name a file, such as RUN/models/sites/SITE.safetensors"
    )


def _read_checkpoint(path: Path) -> WeightsFile:
    """The global model of the state in a checkpoint."""
    try:
        model = checkpoint.read(path).state.model
    except RunError as error:
        raise ConfigError(f"{KEY}: {error}; name a file of weights") from error
    if model is None:
        raise ConfigError(f"{KEY}={path}: the state has no global model; name a file of weights")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in model.items()}
    sha256 = hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest()
    return WeightsFile(str(path), sha256, tensors)


def _read_bytes(path: str) -> bytes:
    limit = None
    try:
        with fsspec.open(check_url(path), "rb") as file:
            limit = _largest(path) if "://" in path else None
            content: bytes = file.read(None if limit is None else limit + 1)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{KEY}={path} cannot be read: {reason}; check the address, and the permissions") from error
    if limit is not None and len(content) > limit:
        raise ConfigError(f"{KEY}={path} is larger than {format_bytes(limit)}; download or unpack it and name the file")
    return content


def _largest(path: str) -> int:
    """The largest number of bytes of the file at a URL. A small archive may contain a much larger file."""
    if "::" not in path:
        return MAX_URL_BYTES
    stored = stored_bytes(path)
    return min(MAX_URL_BYTES, int(max(memory_limit(stored) / 3, 3 * stored)))


def _parse(path: str, content: bytes) -> Mapping[str, Tensor]:
    name = path.partition("::")[0].partition("?")[0]
    try:
        if name.endswith(".safetensors"):
            return load_safetensors(content)
        if name.endswith(TORCH_SUFFIXES):
            # A few bytes may be expanded to any size: records may be compressed, and the pickle may copy values.
            with limited_memory(max(ANY_FILE, 3 * len(content))):
                return _state_dict(path, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{KEY}={path} has no tensors that can be read without running its code, or takes much more memory than "
            "its size; save the weights with safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')"
        ) from error
    raise ConfigError(f"{KEY}={path}: expected a .safetensors, .pt or .pth file")


def _state_dict(path: str, loaded: Any) -> Mapping[str, Tensor]:
    """The state dict that `loaded` is or contains."""
    nested = (loaded.get(key) for key in STATE_KEYS) if isinstance(loaded, Mapping) else ()
    for candidate in (loaded, *nested):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return candidate
    raise ConfigError(f"{KEY}={path} has no state dict; save network.state_dict()")
