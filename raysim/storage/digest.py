"""SHA-256 digest of a state and its client states. Equal digests show that two runs are bit-identical."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from raysim.core.model import Array
from raysim.storage.serialization import array_name, encode


def digest(state: Any, client_states: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of a state and all client states: of the shape, dtype and bits of every value, and of tensor names.

    A dataclass enters with the fixed tag "dataclass" and its values in field order. Its module, its name and the names
    of its fields are not part of the digest, so moving or renaming code does not change a digest.
    """
    total = hashlib.sha256(_canonical(state))
    for site in sorted(client_states or ()):
        total.update(f"{site} {digest((client_states or {})[site])}".encode())
    return total.hexdigest()


def _canonical(tree: Any) -> bytes:
    described, arrays = encode(tree)
    return json.dumps(_tagged(described, arrays), sort_keys=True).encode()


def _tagged(described: Any, arrays: Mapping[str, Array]) -> Any:
    """The description by `encode`, with fingerprints instead of array names and tags instead of classes."""
    if not isinstance(described, dict):
        return described
    if "model" in described:
        at = described["at"]
        return {
            "model": [[name, kind, _fingerprint(arrays[array_name(at, name)])] for name, kind in described["model"]]
        }
    if "array" in described:
        return {"array": _fingerprint(arrays[described["array"]]), "tensor": described["tensor"]}
    if "dataclass" in described:
        return {"dataclass": [_tagged(value, arrays) for value in described["fields"].values()]}
    if "mapping" in described:
        return {"mapping": [[key, _tagged(value, arrays)] for key, value in described["mapping"]]}
    return {kind: [_tagged(item, arrays) for item in items] for kind, items in described.items()}


def _fingerprint(array: Array) -> list[Any]:
    whole = np.asarray(array, order="C")
    return [whole.dtype.str, list(whole.shape), hashlib.sha256(whole.tobytes()).hexdigest()]
