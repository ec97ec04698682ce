"""Many copies of one network. A tiny one takes as long to deep-copy as to train for a step."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

from torch import nn

SHARED = (type, FunctionType, BuiltinFunctionType, ReferenceType)  # what a deep copy does not copy either


class _StructurePickler(pickle.Pickler):
    """The structure of an object as bytes; apart from it, what has its own way of being copied, such as tensors."""

    def __init__(self, origin: object) -> None:
        self.stream, self.apart, self.keys = io.BytesIO(), list[Any](), dict[int, int]()
        super().__init__(self.stream, pickle.HIGHEST_PROTOCOL)
        self.dump(origin)
        self.clear_memo()  # it would keep the origin alive

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, SHARED) and not hasattr(type(obj), "__deepcopy__"):
            return None
        if isinstance(obj, type) and _by_name(obj) is obj:  # pickle then notes it once, however often it occurs
            return None
        if id(obj) not in self.keys:
            self.keys[id(obj)] = len(self.apart)
            self.apart.append(obj)
        return self.keys[id(obj)]


def _by_name(kind: type) -> Any:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None)


class _StructureUnpickler(pickle.Unpickler):
    """A copy out of a mould."""

    def __init__(self, mould: _StructurePickler) -> None:
        super().__init__(io.BytesIO(mould.stream.getbuffer()))
        # All in one go: tensors that share memory, or are the same tensor twice, do so in the copy.
        self.apart = copy.deepcopy(mould.apart)

    def persistent_load(self, pid: int) -> Any:
        return self.apart[pid]


_pickled: WeakKeyDictionary[nn.Module, _StructurePickler] = WeakKeyDictionary()


def copy_module(net: nn.Module) -> nn.Module:
    """A deep copy of `net`, which must not have changed since its first twin."""
    if net not in _pickled:
        _pickled[net] = _StructurePickler(net)
    copied: nn.Module = _StructureUnpickler(_pickled[net]).load()
    return copied
