"""The open data of sites, and the check that a client function has not changed what it received."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imagecodecs import deflate_crc32  # several times as fast as that of zlib
from torch import Tensor

from raysim.core.contracts import SPLITS, Array, Data, Task
from raysim.core.errors import RunError
from raysim.core.model import Model
from raysim.core.pytree import leaves, make_readonly

DATA_CACHE_BYTES = 256 * 2**20  # limit of a process's cached data; memory-mapped data are not counted
PAGE = os.sysconf("SC_PAGESIZE")
PAGE_TABLE = Path("/proc/self/pagemap")  # of Linux: 64 bits for each page of this process's memory
IN_MEMORY, OF_FILE = np.uint64(0b11 << 62), np.uint64(1 << 61)  # bits of an entry: present or swapped; not copied


class SiteDataCache:
    """The open data of a task's sites in this process, read-only. The runs of a search share it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._data: dict[str, Data] = {}
        self._fingerprints: dict[str, dict[str, int]] = {}  # of the arrays as they were opened
        self.held = 0

    def __getitem__(self, name: str) -> Data:
        if name not in self._data:
            data = make_readonly(self.task.open(name))
            self._data[name], self._fingerprints[name] = data, _fingerprints(data)
            self.held += _in_memory(data)
        while self.held > DATA_CACHE_BYTES and len(self._data) > 1:
            self.drop(next(site for site in self._data if site != name))
        return self._data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def drop(self, name: str) -> None:
        """Close the data of a site; the next access opens it again."""
        self.held -= _in_memory(self._data.pop(name))
        del self._fingerprints[name]

    def check_unchanged(self, name: str) -> None:
        """Raises RunError for a changed array of the site, and drops the data, so that the next call has correct ones.

        Numpy refuses to write to these arrays, but a torch tensor that shares their memory can be written to.
        """
        if name not in self._data:  # closed, to limit the memory, while other sites of a group ran
            return
        before, after = self._fingerprints[name], _fingerprints(self._data[name])
        if changed := [array for array in after if after[array] != before[array]]:
            self.drop(name)
            raise RunError(write_message(f"site.data.{changed[0]}"))


def fingerprint(tree: Any) -> int:
    """A number that differs after a write to `tree`: to an array, a model or a tensor, or to a list or a mapping."""
    result = 0
    for leaf in leaves(tree):
        if isinstance(leaf, Model):
            result = hash((result, _checksum(leaf.buffer)))
        elif isinstance(leaf, np.ndarray):
            result = hash((result, _array_fingerprint(leaf)))
        elif isinstance(leaf, Tensor):
            result = hash((result, _tensor_fingerprint(leaf)))
        elif leaf is None or isinstance(leaf, bool | int | float | str | bytes):
            result = hash((result, leaf))
    return result


def write_message(name: str) -> str:
    """The error for a client function that has changed `name`, with the cure."""
    copy = "torch.tensor(array) instead of torch.from_numpy(array), array.copy() or copy.deepcopy(value)"
    copy = "net = site.load()" if name == "site.template" else copy
    return f"the client function has changed {name} in place, but what it receives is read-only; work on a copy: {copy}"


def _fingerprints(data: Data) -> dict[str, int]:
    """The fingerprint of each array, by `split.field`."""
    return {name: _array_fingerprint(array) for name, array in _arrays(data)}


def _arrays(data: Data) -> Iterator[tuple[str, Array]]:
    """Each array with `split.field`; of the views of a memory-mapped file the array of the whole file."""
    for split in SPLITS:
        for field, array in vars(data[split]).items():
            if isinstance(array, np.ndarray):
                yield f"{split}.{field}", array
        whole = [each for each in leaves(data[split].images) if isinstance(each, np.ndarray)]
        files = (each.base if isinstance(each.base, np.memmap) else each for each in whole)
        for number, array in enumerate({id(array): array for array in files}.values()):
            yield f"{split}.images.{number}", array


def _array_fingerprint(array: Array) -> int:
    """The number of changed pages of a memory-mapped array; the checksum of an array in memory."""
    if isinstance(array, np.memmap) and array.nbytes and PAGE_TABLE.exists():
        return _changed_pages(array)
    if array.dtype.hasobject:
        return 0
    return _checksum(np.ascontiguousarray(array))


def _tensor_fingerprint(tensor: Tensor) -> int:
    """The checksum of a dense tensor on the CPU; of others the number of writes, which torch counts."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return 0 if tensor.is_inference() else tensor._version
    return _checksum(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _checksum(array: Array) -> int:
    values: Any = array.reshape(-1).view(np.uint8)  # the stub of imagecodecs lacks arrays
    return int(deflate_crc32(values))


def _changed_pages(array: Array) -> int:
    """The pages of a copy-on-write array that differ from its file. Reads 8 bytes for each page and not the data."""
    first, last = array.ctypes.data // PAGE, (array.ctypes.data + array.nbytes - 1) // PAGE
    with PAGE_TABLE.open("rb", buffering=0) as table:
        table.seek(8 * first)
        entries = np.frombuffer(table.read(8 * (last - first + 1)), np.uint64)
    return int((((entries & IN_MEMORY) != 0) & ((entries & OF_FILE) == 0)).sum())


def _in_memory(data: Data) -> int:
    """The bytes of `data` in memory; memory-mapped arrays do not count."""
    return sum(array.nbytes for _, array in _arrays(data) if not isinstance(array, np.memmap))
