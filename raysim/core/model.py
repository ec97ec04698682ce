"""A model: the weights of a network as data, in one flat buffer that crosses processes without a copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model, and whether it is a parameter or a buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameter: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class Schema:
    """The entries of a model as they lie in its buffer: by dtype, the widest first, so that every view is aligned."""

    def __init__(self, entries: tuple[TensorSpec, ...]) -> None:
        self.entries = entries
        self.index = {entry.name: entry for entry in entries}
        ends = list(accumulate(entry.nbytes for entry in entries))
        self.nbytes = ends[-1] if ends else 0
        starts = [0, *ends[:-1]]
        self.slices = {e.name: slice(a, b) for e, a, b in zip(entries, starts, ends, strict=False)}
        self.groups = [(dtype, list(group)) for dtype, group in groupby(entries, lambda e: e.dtype)]
        self.text = json.dumps([astuple(entry) for entry in entries])  # how it travels: with every model of a round

    def __reduce__(self) -> tuple[Callable[..., Schema], tuple[str]]:
        return _schema_from_text, (self.text,)

    def spans(self) -> Iterator[tuple[np.dtype[Any], slice]]:
        """Each run of one dtype, as a slice of bytes."""
        for dtype, group in self.groups:
            yield np.dtype(dtype), slice(self.slices[group[0].name].start, self.slices[group[-1].name].stop)


def _place(entry: TensorSpec) -> tuple[int, str, str]:
    return -np.dtype(entry.dtype).itemsize, entry.dtype, entry.name


@lru_cache(maxsize=256)
def schema_of(entries: tuple[TensorSpec, ...]) -> Schema:
    """The schema of these entries, the same object whatever order they are named in."""
    ordered = tuple(sorted(entries, key=_place))
    return Schema(entries) if entries == ordered else schema_of(ordered)


@lru_cache(maxsize=256)
def _schema_from_text(text: str) -> Schema:
    entries = (TensorSpec(name, tuple(shape), dtype, trained) for name, shape, dtype, trained in json.loads(text))
    return schema_of(tuple(entries))


class Model(Mapping[str, Array]):
    """Weights by name, read-only, over one contiguous buffer: pickled without copying, summed at once.

    Equality is of names, dtypes and bits.
    """

    __slots__ = ("buffer", "schema")

    def __init__(self, schema: Schema, buffer: Array) -> None:
        self.schema, self.buffer = schema, buffer.view()
        self.buffer.flags.writeable = False

    @classmethod
    def of(cls, tensors: Mapping[str, Array], parameters: Iterable[str] | None = None) -> Model:
        """A model of these arrays; `parameters` names those that training changes (all, if not given)."""
        trained = set(tensors if parameters is None else parameters)
        entries = (TensorSpec(n, a.shape, a.dtype.name, n in trained) for n, a in tensors.items())
        schema = schema_of(tuple(entries))
        buffer = np.empty(schema.nbytes, np.uint8)
        for entry in schema.entries:
            array = np.ascontiguousarray(tensors[entry.name]).reshape(-1)
            buffer[schema.slices[entry.name]] = array.view(np.uint8)
        return cls(schema, buffer)

    @property
    def model(self) -> Model:
        """Itself: a bare model may serve as an algorithm's state, and every state answers `.model`."""
        return self

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)

    @property
    def parameters(self) -> Model:
        """Only what training changes."""
        return self.only(entry.name for entry in self.schema.entries if entry.parameter)

    @property
    def buffers(self) -> Model:
        """Only what training does not change by gradients: running statistics, counters."""
        return self.only(entry.name for entry in self.schema.entries if not entry.parameter)

    def only(self, names: Iterable[str]) -> Model:
        """The entries of these names."""
        names = list(names)
        if len(names) == len(self):
            return self
        trained = (name for name in names if self.schema.index[name].parameter)
        return Model.of({name: self[name] for name in names}, trained)

    def __getitem__(self, name: str) -> Array:
        entry = self.schema.index[name]
        return self.buffer[self.schema.slices[name]].view(entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.index)

    def __len__(self) -> int:
        return len(self.schema.index)

    def __or__(self, other: Model) -> Model:
        """Both; where a name is in both, `other` wins."""
        if self.schema is other.schema:
            return other
        trained = {e.name for m in (self, other) for e in m.schema.entries if e.parameter}
        return Model.of({**self, **other}, trained)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model) or self.schema.entries != other.schema.entries:
            return False
        return np.array_equal(self.buffer, other.buffer)

    __hash__ = None  # type: ignore[assignment]  # compared by bits, so not a key

    def __reduce__(self) -> tuple[type[Model], tuple[Schema, Array]]:
        return Model, (self.schema, self.buffer)

    def __repr__(self) -> str:
        return f"Model({len(self)} tensors, {self.nbytes} bytes)"


@lru_cache(maxsize=256)
def _schema(tensors: tuple[tuple[str, torch.Size, torch.dtype, bool], ...]) -> Schema:
    entries = (
        TensorSpec(n, tuple(shape), str(dtype).removeprefix("torch."), trained) for n, shape, dtype, trained in tensors
    )
    return schema_of(tuple(entries))


def _layout(net: nn.Module) -> tuple[Schema, dict[str, Tensor]]:
    tensors = net.state_dict(keep_vars=True)
    entries = ((name, t.shape, t.dtype, isinstance(t, nn.Parameter)) for name, t in tensors.items())
    return _schema(tuple(entries)), tensors


@torch.no_grad()
def weights(net: nn.Module) -> Model:
    """The weights of `net`, buffers included, copied to the CPU in one crossing per dtype."""
    schema, tensors = _layout(net)
    buffer = np.empty(schema.nbytes, np.uint8)
    for (_, group), (dtype, span) in zip(schema.groups, schema.spans(), strict=True):
        flat = torch.cat([tensors[entry.name].reshape(-1) for entry in group])
        buffer[span].view(dtype)[:] = flat.cpu().numpy()
    return Model(schema, buffer)


@torch.no_grad()
def load(net: nn.Module, model: Model) -> None:
    """Copy `model` into `net`; buffers that the model leaves out stay as they are.

    Raises ValueError where names, shapes or dtypes differ.
    """
    schema, tensors = _layout(net)
    if schema is not model.schema and schema.entries != model.schema.entries:
        _load_without_buffers(schema, tensors, model)
        return
    for (_, group), (dtype, span) in zip(schema.groups, schema.spans(), strict=True):
        # Copied first: the buffer is read-only shared memory, which torch must never be given to write to.
        flat = torch.from_numpy(model.buffer[span].view(dtype).copy())
        into = [tensors[entry.name] for entry in group]
        flat = flat.to(into[0].device)
        pieces = torch.split(flat, [prod(entry.shape) for entry in group])
        for tensor, piece in zip(into, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _load_without_buffers(schema: Schema, tensors: Mapping[str, Tensor], model: Model) -> None:
    left_out = {entry.name for entry in schema.entries if not entry.parameter} - set(model)
    wanted = schema_of(tuple(e for e in schema.entries if e.name not in left_out))
    if wanted.entries != model.schema.entries:
        raise ValueError(f"the model does not fit the network: {_difference(model.schema, wanted)}")
    for name, array in model.items():
        tensors[name].copy_(torch.from_numpy(array.copy()))


def _difference(given: Schema, wanted: Schema) -> str:
    for entry in wanted.entries:
        other = given.index.get(entry.name)
        if other is None:
            return f"it has no '{entry.name}'"
        if (other.shape, other.dtype) != (entry.shape, entry.dtype):
            return f"'{entry.name}' is {other.dtype}{other.shape}, not {entry.dtype}{entry.shape}"
    return f"it has more: {sorted(set(given.index) - set(wanted.index))[:3]}"
