"""Fast deep copies of a network: for a small one, `copy.deepcopy` takes as long as a training step."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

from torch import nn

SHARED = (type, FunctionType, BuiltinFunctionType, ReferenceType)  # a deep copy shares these too


class _StructurePickler(pickle.Pickler):
    """The structure of an object as bytes, without objects that have a `__deepcopy__` method, such as tensors."""

    def __init__(self, origin: object) -> None:
        self.stream, self.external, self.keys = io.BytesIO(), list[Any](), dict[int, int]()
        super().__init__(self.stream, pickle.HIGHEST_PROTOCOL)
        self.dump(origin)
        self.clear_memo()  # the memo would keep the original in memory

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, SHARED) and not hasattr(type(obj), "__deepcopy__"):
            return None
        if isinstance(obj, type) and _by_name(obj) is obj:  # pickle then stores its name once
            return None
        if id(obj) not in self.keys:
            self.keys[id(obj)] = len(self.external)
            self.external.append(obj)
        return self.keys[id(obj)]


def _by_name(kind: type) -> Any:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None)


class _StructureUnpickler(pickle.Unpickler):
    """Builds a copy from the pickled structure and deep copies of the external objects."""

    def __init__(self, pickled: _StructurePickler) -> None:
        super().__init__(io.BytesIO(pickled.stream.getbuffer()))
        # One deep copy of all objects: tensors that share memory, or are the same tensor, also do so in the copy.
        self.external = copy.deepcopy(pickled.external)

    def persistent_load(self, pid: int) -> Any:
        return self.external[pid]


_pickled: WeakKeyDictionary[nn.Module, _StructurePickler] = WeakKeyDictionary()


def copy_module(net: nn.Module) -> nn.Module:
    """A deep copy of `net`, which must not have changed since its first copy."""
    if net not in _pickled:
        _pickled[net] = _StructurePickler(net)
    copied: nn.Module = _StructureUnpickler(_pickled[net]).load()
    return copied
