"""Model: the weights of a network as data in one flat buffer, which processes share without a copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from math import prod
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Array = np.ndarray[Any, np.dtype[Any]]
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
FLOATS = (torch.float16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # of tensors in a model
SUPPORTED_DTYPES = (
    "float32, float16, float64, integers or bool; keep the parameters in float32 and set algorithm.amp=true to compute "
    "in bfloat16"
)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one tensor of a model, and whether it is a parameter or a buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameter: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class Schema:
    """The tensors of a model in the order of its buffer: by dtype, the widest first, so that every view is aligned."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self.specs = specs
        self.index = {spec.name: spec for spec in specs}
        ends = list(accumulate(spec.nbytes for spec in specs))
        self.nbytes = ends[-1] if ends else 0
        starts = [0, *ends[:-1]]
        self.slices = {s.name: slice(a, b) for s, a, b in zip(specs, starts, ends, strict=False)}
        self.groups = [(dtype, list(group)) for dtype, group in groupby(specs, lambda s: s.dtype)]
        self.text = json.dumps([astuple(spec) for spec in specs])  # its pickled form, sent with every model

    def __reduce__(self) -> tuple[Callable[..., Schema], tuple[str]]:
        return _schema_from_text, (self.text,)

    def spans(self) -> Iterator[tuple[np.dtype[Any], slice]]:
        """Each dtype, and the slice of bytes that its tensors occupy."""
        for dtype, group in self.groups:
            yield np.dtype(dtype), slice(self.slices[group[0].name].start, self.slices[group[-1].name].stop)


def _buffer_order(spec: TensorSpec) -> tuple[int, str, str]:
    return -np.dtype(spec.dtype).itemsize, spec.dtype, spec.name


@lru_cache(maxsize=256)
def schema_of(specs: tuple[TensorSpec, ...]) -> Schema:
    """The schema of these tensors, the same object for every order of `specs`."""
    ordered = tuple(sorted(specs, key=_buffer_order))
    return Schema(specs) if specs == ordered else schema_of(ordered)


@lru_cache(maxsize=256)
def _schema_from_text(text: str) -> Schema:
    specs = (TensorSpec(name, tuple(shape), dtype, parameter) for name, shape, dtype, parameter in json.loads(text))
    return schema_of(tuple(specs))


class Model(Mapping[str, Array]):
    """Read-only weights by name in one contiguous buffer, which is pickled without a copy and summed in one operation.

    `a + b`, `a - b` and `2 * a` are the sums of `raysim.combine`: computed in float64, converted to the dtypes of the
    models, integers rounded. Two models are equal if their names, shapes, dtypes and bits are equal.
    """

    __slots__ = ("buffer", "schema")
    __array_ufunc__ = None  # a numpy number times a model is a model, not an array of objects

    def __init__(self, schema: Schema, buffer: Array) -> None:
        self.schema, self.buffer = schema, buffer.view()
        self.buffer.flags.writeable = False

    @classmethod
    def of(cls, tensors: Mapping[str, Array], parameters: Iterable[str] | None = None) -> Model:
        """A model of these arrays; `parameters` names those that are parameters (default: all)."""
        named = set(tensors if parameters is None else parameters)
        specs = (TensorSpec(n, a.shape, a.dtype.name, n in named) for n, a in tensors.items())
        schema = schema_of(tuple(specs))
        buffer = np.empty(schema.nbytes, np.uint8)
        for spec in schema.specs:
            array = np.ascontiguousarray(tensors[spec.name]).reshape(-1)
            buffer[schema.slices[spec.name]] = array.view(np.uint8)
        return cls(schema, buffer)

    def like(self, arrays: Mapping[str, ArrayLike]) -> Model:
        """A model of `arrays` with the names, dtypes and kinds (parameter or buffer) of this one.

        Integers, such as the counters of BatchNorm, are rounded to the nearest. Raises ValueError if a name or a shape
        differs, and for a value that an integer tensor cannot hold.
        """
        given = {name: np.asarray(array) for name, array in arrays.items()}
        for name in [*self, *given]:
            if name not in given or name not in self:
                raise ValueError(f"the arrays {'have no' if name in self else 'have an unexpected'} '{name}'")
            if given[name].shape != self[name].shape:
                raise ValueError(f"'{name}' has the shape {given[name].shape}: expected {self[name].shape}")
        converted = {name: _convert(name, array, self[name].dtype) for name, array in given.items()}
        return Model.of(converted, self.parameters)

    @property
    def model(self) -> Model:
        """The model itself, so that a bare model can be a server state, which has `.model`."""
        return self

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)

    @property
    def parameters(self) -> Model:
        """The parameters, which training changes."""
        return self.only(spec.name for spec in self.schema.specs if spec.parameter)

    @property
    def buffers(self) -> Model:
        """The buffers, which have no gradients: running statistics and counters."""
        return self.only(spec.name for spec in self.schema.specs if not spec.parameter)

    def only(self, names: Iterable[str]) -> Model:
        """A model of the tensors with these names."""
        names = list(names)
        if len(names) == len(self):
            return self
        parameters = (name for name in names if self.schema.index[name].parameter)
        return Model.of({name: self[name] for name in names}, parameters)

    def __getitem__(self, name: str) -> Array:
        spec = self.schema.index[name]
        return self.buffer[self.schema.slices[name]].view(spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.index)

    def __len__(self) -> int:
        return len(self.schema.index)

    def __or__(self, other: Model) -> Model:
        """The union of both models, with the tensors of `other` for names that are in both."""
        if self.schema is other.schema:
            return other
        parameters = {spec.name for model in (self, other) for spec in model.schema.specs if spec.parameter}
        return Model.of({**self, **other}, parameters)

    def __add__(self, other: Model) -> Model:
        if not isinstance(other, Model):
            return NotImplemented
        return _combine([self, other], [1, 1])

    def __sub__(self, other: Model) -> Model:
        if not isinstance(other, Model):
            return NotImplemented
        return _combine([self, other], [1, -1])

    def __mul__(self, factor: float) -> Model:
        if not isinstance(factor, Real):
            return NotImplemented
        return _combine([self], [float(factor)])

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model) or self.schema.specs != other.schema.specs:
            return False
        return np.array_equal(self.buffer, other.buffer)

    __hash__ = None  # type: ignore[assignment]  # equality compares all bits, so a model is not a dictionary key

    def __reduce__(self) -> tuple[type[Model], tuple[Schema, Array]]:
        return Model, (self.schema, self.buffer)

    def __repr__(self) -> str:
        return f"Model({len(self)} tensors, {self.nbytes} bytes)"


def _convert(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        return array.astype(dtype)
    rounded, limits = np.rint(array) if array.dtype.kind == "f" else array, np.iinfo(dtype)
    if not ((rounded >= limits.min) & (rounded <= limits.max)).all():  # NaN is in no range
        raise ValueError(f"'{name}' has values outside the range of {dtype}, {limits.min} to {limits.max}")
    return rounded.astype(dtype)


def _combine(models: Iterable[Model], factors: Iterable[float]) -> Model:
    from raysim.core.aggregation import combine  # here, because that module imports this one

    return combine(models, factors)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=256)
def _schema(tensors: tuple[tuple[str, torch.Size, torch.dtype, bool], ...]) -> Schema:
    specs = (TensorSpec(name, tuple(shape), _dtype_name(dtype), parameter) for name, shape, dtype, parameter in tensors)
    return schema_of(tuple(specs))


def _layout(net: nn.Module) -> tuple[Schema, dict[str, Tensor]]:
    tensors = net.state_dict(keep_vars=True)
    specs = ((name, t.shape, t.dtype, isinstance(t, nn.Parameter)) for name, t in tensors.items())
    return _schema(tuple(specs)), tensors


def describe_unsupported(net: nn.Module) -> str:
    """The first entry of `net.state_dict()` that a model cannot hold, with the cure; empty if there is none."""
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            return f"'{name}' is a {type(tensor).__name__} (get_extra_state): expected tensors only; remove it"
        if is_lazy(tensor):
            return f"'{name}' has no shape before the first batch (a lazy layer); use a layer with given sizes"
        if tensor.dtype not in DTYPES:
            return f"'{name}' is {_dtype_name(tensor.dtype)}: expected {SUPPORTED_DTYPES}"
        if tensor.is_meta or tensor.layout != torch.strided:
            return f"'{name}' has no values, or is sparse; use dense tensors on the CPU"
    return ""


@torch.no_grad()
def weights(net: nn.Module) -> Model:
    """The weights of `net`, buffers included, copied to the CPU in one transfer per dtype."""
    schema, tensors = _layout(net)
    buffer = np.empty(schema.nbytes, np.uint8)
    for (_, group), (dtype, span) in zip(schema.groups, schema.spans(), strict=True):
        flat = torch.from_numpy(buffer[span].view(dtype))
        pieces = [tensors[spec.name].reshape(-1) for spec in group]
        if pieces[0].device == flat.device:
            torch.cat(pieces, out=flat)
        else:
            flat.copy_(torch.cat(pieces))
    return Model(schema, buffer)


@torch.no_grad()
def load(net: nn.Module, model: Model) -> None:
    """Copy `model` into `net`; buffers that the model lacks are unchanged.

    Raises ValueError if names, shapes or dtypes differ.
    """
    schema, tensors = _layout(net)
    if schema is not model.schema and schema.specs != model.schema.specs:
        missing = {spec.name for spec in schema.specs if not spec.parameter} - set(model)
        expected = schema_of(tuple(spec for spec in schema.specs if spec.name not in missing))
        if expected.specs != model.schema.specs:
            raise ValueError(f"the model does not fit the network: {describe_difference(model.schema, expected)}")
    for (_, group), (dtype, span) in zip(model.schema.groups, model.schema.spans(), strict=True):
        targets = [tensors[spec.name] for spec in group]
        if targets[0].device.type == "cpu":  # by numpy: torch has no read-only tensors, and the buffer is read-only
            for spec, tensor in zip(group, targets, strict=True):
                np.copyto(tensor.detach().numpy(), model[spec.name])
            continue
        flat = torch.from_numpy(model.buffer[span].view(dtype).copy()).to(targets[0].device)
        for tensor, piece in zip(targets, flat.split([tensor.numel() for tensor in targets]), strict=True):
            tensor.copy_(piece.view(tensor.shape))


def lacks_statistics(model: Model, name: str, layer: nn.Module) -> bool:
    """Whether `layer` is a BatchNorm layer whose running statistics are not in `model`."""
    return isinstance(layer, BatchNorm) and f"{name}.running_mean" not in model


def describe_difference(given: Schema, expected: Schema) -> str:
    """The first difference of `given` from `expected`, for an error message."""
    for spec in expected.specs:
        other = given.index.get(spec.name)
        if other is None:
            return f"it has no '{spec.name}'"
        if (other.shape, other.dtype) != (spec.shape, spec.dtype):
            return f"'{spec.name}' is {other.dtype}{other.shape}, not {spec.dtype}{spec.shape}"
        if other.parameter != spec.parameter:
            kinds = ("a parameter", "a buffer") if other.parameter else ("a buffer", "a parameter")
            return f"'{spec.name}' is {kinds[0]}, not {kinds[1]}; create the model with Model.like"
    return f"it has unexpected tensors: {sorted(set(given.index) - set(expected.index))[:3]}"
