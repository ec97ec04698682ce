"""Converts states and client states to the content of checkpoints, JSON and named tensors, without pickle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from raysim.core.model import Array, Model
from raysim.core.registry import import_by_name

SUPPORTED = "None, bool, int, float, str, arrays, models, or dataclasses, lists, tuples and mappings of these"
TRUSTED_PACKAGES = ("raysim", "algorithms")


def encode(tree: Any) -> tuple[Any, dict[str, Array]]:
    """A JSON description of `tree`, and the arrays that it names. The arrays of a bare model keep their names.

    Raises TypeError, with the position in the tree, for a value that would need pickle.
    """
    arrays: dict[str, Array] = {}
    return _encode(tree, "", arrays), arrays


def _encode(tree: Any, at: str, arrays: dict[str, Array]) -> Any:
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Model):
        return _encode_model(tree, at, arrays)
    if isinstance(tree, np.ndarray | np.generic | Tensor):
        _check_dtype(tree, at)
        arrays[at or "value"] = np.asarray(tree)
        return {"array": at or "value", "tensor": isinstance(tree, Tensor)}
    if is_dataclass(tree) and not isinstance(tree, type):
        kind = type(tree)
        held = {f.name: _encode(getattr(tree, f.name), array_name(at, f.name), arrays) for f in fields(tree)}
        return {"dataclass": f"{kind.__module__}:{kind.__qualname__}", "fields": held}
    if isinstance(tree, Mapping):
        return {"mapping": [[k, _encode(v, array_name(at, _part(k, at)), arrays)] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [_encode(value, array_name(at, str(i)), arrays) for i, value in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": items}
    raise TypeError(f"a checkpoint cannot store the {type(tree).__name__} at '{at}'; use {SUPPORTED}")


def _check_dtype(array: np.ndarray[Any, Any] | np.generic | Tensor, at: str) -> None:
    """Raises TypeError for values that numpy does not have, such as bfloat16, or would pickle."""
    if isinstance(array, Tensor):
        try:
            torch.empty(0, dtype=array.dtype).numpy()
        except TypeError:
            kind = str(array.dtype).removeprefix("torch.")
            raise TypeError(f"a checkpoint cannot store the {kind} tensor at '{at}'; convert it to float32") from None
    elif array.dtype.hasobject:
        raise TypeError(f"a checkpoint cannot store the array of Python objects at '{at}'; use a list")


def _encode_model(model: Model, at: str, arrays: dict[str, Array]) -> Any:
    for name, array in model.items():
        arrays[array_name(at, name)] = array
    return {"model": [[name, model.schema.index[name].parameter] for name in model], "at": at}


def _part(key: Any, at: str) -> str:
    """The part of array names for `key`. {"a/b": x} and {"a": {"b": x}} have different names, as have 1 and "1"."""
    if isinstance(key, int):
        return f"#{key}"
    if not isinstance(key, str):
        raise TypeError(
            f"a checkpoint cannot store the key of type {type(key).__name__} at '{at}'; use str or int keys"
        )
    return quote(key, safe=" ")


def array_name(at: str, name: str) -> str:
    return f"{at}/{name}" if at else name


def decode(value: Any, arrays: Mapping[str, Array], trusted: Collection[str] = ()) -> Any:
    """The tree that was passed to `encode`.

    Dataclasses are imported from raysim, from `algorithms` and from the modules in `trusted`. Raises ValueError for
    other modules, because an import runs code, and for a class that the module only imports.
    """
    if not isinstance(value, dict):
        return value
    if "model" in value:
        held = {name: arrays[array_name(value["at"], name)] for name, _ in value["model"]}
        return Model.of(held, (name for name, parameter in value["model"] if parameter))
    if "array" in value:
        array = arrays[value["array"]]
        return torch.from_numpy(array.copy()) if value["tensor"] else array
    if "dataclass" in value:
        held = {name: decode(item, arrays, trusted) for name, item in value["fields"].items()}
        return _dataclass(value["dataclass"], trusted)(**held)
    if "mapping" in value:
        return {key: decode(item, arrays, trusted) for key, item in value["mapping"]}
    kind = tuple if "tuple" in value else list
    return kind(decode(item, arrays, trusted) for item in value["tuple" if kind is tuple else "list"])


def _dataclass(name: str, trusted: Collection[str]) -> Any:
    module, _, qualname = name.partition(":")
    if module.split(".")[0] not in TRUSTED_PACKAGES and module not in trusted:
        raise ValueError(f"the checkpoint names {name}, which is not in a module of raysim or of the run's algorithm")
    found: Any = import_by_name(module) if module in trusted else import_module(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ValueError(f"the checkpoint names {name}, which is not a dataclass")
    if (found.__module__, found.__qualname__) != (module, qualname):  # imported there, such as a class of a library
        raise ValueError(f"the checkpoint names {name}, which is defined in {found.__module__}: not a class of a state")
    return found
