"""Weighted sums and means of models, in a fixed order, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from raysim.core.model import Array, Model, Schema, _difference

if TYPE_CHECKING:
    from raysim.core.contracts import Reply


P = TypeVar("P")
BLOCK = 1 << 16  # entries summed at a time: the float64 block stays in the cache, not in memory
FOLD = 16  # models summed in one pass through the sum: memory is read about once, and few replies are held


def combine(models: Iterable[Model], factors: Iterable[float]) -> Model:
    """The sum of `factors[i] * models[i]`, in the order given, in float64, then in the models' own dtypes.

    Integer entries (BatchNorm's counters) are rounded to the nearest. Raises ValueError if the schemas differ.
    """
    schema, sums, _ = _summed(zip(models, factors, strict=True))
    return _narrowed(schema, sums)


def _summed(pairs: Iterable[tuple[Model, float]]) -> tuple[Schema, list[Array], float]:
    """The sum of model * factor, as float64 arrays, one for each dtype, and the sum of the factors; read once."""
    first, *rest = islice(pairs := iter(pairs), FOLD)
    schema, chunk, total = first[0].schema, [first, *rest], 0.0
    sums = [np.zeros((span.stop - span.start) // dtype.itemsize) for dtype, span in schema.spans()]
    while chunk:
        for model, factor in chunk:
            if model.schema is not schema and model.schema.entries != schema.entries:
                raise ValueError(f"models of different networks: {_difference(model.schema, schema)}")
            total += factor
        for (dtype, span), out in zip(schema.spans(), sums, strict=True):
            _add([(model.buffer[span].view(dtype), np.float64(factor)) for model, factor in chunk], out)
        chunk = list(islice(pairs, FOLD))
    return schema, sums, total


def _narrowed(schema: Schema, sums: Iterable[Array]) -> Model:
    buffer = np.empty(schema.nbytes, np.uint8)
    for (dtype, span), array in zip(schema.spans(), sums, strict=True):
        buffer[span].view(dtype)[:] = array if dtype.kind == "f" else np.rint(array)
    return Model(schema, buffer)


def _add(rows: list[tuple[Array, np.float64]], out: Array) -> None:
    """Adds row * factor, row after row, for float addition is not associative and the order must be the same."""
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        for row, factor in rows:
            out[block] += row[block] * factor


def identity(payload: Model) -> Model:
    """The payload itself, where it is a model."""
    return payload


def mean(replies: Mapping[str, Reply[P]], part: Callable[[P], Model] = identity) -> Model:  # type: ignore[assignment]  # default
    """The mean of the replies' models, weighted by `Reply.weight`: sum_k w_k x_k / sum_k w_k, summed in site order.

    `part` picks the model out of a payload. Replies are read one after the other, few at a time, so that any number of
    them fits. Raises ValueError if the weights add up to no more than zero.
    """
    if not replies:
        raise ValueError("there are no replies; a mean needs more than 0")
    ordered = (replies[site] for site in sorted(replies))
    schema, sums, total = _summed((part(reply.payload), reply.weight) for reply in ordered)
    if not total > 0:
        raise ValueError(f"the weights of {len(replies)} replies add up to {total}; a mean needs more than 0")
    return _narrowed(schema, (array / total for array in sums))
