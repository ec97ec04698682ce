"""The keys of task.network for initial weights and adapters. Imports no torch, because keys are checked without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from raysim.core.errors import ConfigError
from raysim.data.file_paths import absolute_path

WEIGHTS, PARTIAL, LORA = "weights", "weights_partial", "lora"
WEIGHTS_KEYS = ("name", WEIGHTS, PARTIAL, LORA)  # the keys of task.network that are not arguments of the network
WEIGHTS_DOC = (
    "; weights: initial weights, a .safetensors or .pt file, a run directory, a MONAI bundle or a URL; "
    "weights_partial=true: load only the tensors that match; lora: {rank: 8, targets: [qkv]}, low-rank adapters"
)


def _check_weights(network: dict[str, Any]) -> dict[str, Any]:
    """`network` with the absolute path of its weights. Raises ConfigError for values of other types."""
    _check_lora(network.get(LORA))
    source, partial = network.get(WEIGHTS), network.get(PARTIAL, False)
    if not isinstance(partial, bool):
        raise ConfigError(f"task.network.{PARTIAL}={partial!r}: expected true or false")
    if source is None:
        if PARTIAL in network and WEIGHTS not in network:
            raise ConfigError(f"task.network.{PARTIAL} needs task.network.{WEIGHTS}=FILE; add it, or remove the key")
        return network
    if not isinstance(source, str) or not source:
        raise ConfigError(f"task.network.{WEIGHTS}={source!r}: expected a file, a run directory, a bundle or a URL")
    return {**network, WEIGHTS: absolute_path(source)}


def _check_lora(lora: object) -> None:
    """Raises ConfigError for anything but a rank and the names of layers, or None."""
    if lora is None:
        return
    is_complete = isinstance(lora, Mapping) and set(lora) == {"rank", "targets"}
    rank, targets = (lora["rank"], lora["targets"]) if is_complete and isinstance(lora, Mapping) else (0, ())
    has_targets = isinstance(targets, list | tuple) and all(isinstance(name, str) and name for name in targets)
    if not (type(rank) is int and rank > 0 and targets and has_targets):
        raise ConfigError(f"task.network.{LORA}={lora!r}: expected keys as in {{rank: 8, targets: [qkv, out_proj]}}")


def network_arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the network's constructor."""
    return {key: value for key, value in network.items() if key not in WEIGHTS_KEYS}


# For the field `network` of a task: a run may be repeated from another working directory.
NETWORK_KEYS = AfterValidator(_check_weights)
NetworkOption = Annotated[
    dict[str, Any], NETWORK_KEYS, "name of a MONAI network or module:Class, and its arguments" + WEIGHTS_DOC
]
