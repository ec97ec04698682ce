"""Weighted sums and means of models, in site order and in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from raysim.core.model import Array, Model, Schema, describe_difference

if TYPE_CHECKING:
    from raysim.core.contracts import Reply


P = TypeVar("P")
BLOCK = 1 << 16  # entries summed at a time, so that the float64 block stays in the CPU cache
CHUNK = 16  # models summed in one pass over the sum: few passes, and few replies in memory


def combine(models: Iterable[Model], factors: Iterable[float]) -> Model:
    """The sum of `factors[i] * models[i]`, in the given order and in float64, converted to the dtypes of the models.

    Integer tensors (counters of BatchNorm) are rounded to the nearest. Raises ValueError if the schemas differ.
    """
    schema, sums, _ = _weighted_sum(zip(models, factors, strict=True))
    return _to_model(schema, sums)


def _weighted_sum(pairs: Iterable[tuple[Model, float]]) -> tuple[Schema, list[Array], float]:
    """The sum of model * factor as one float64 array per dtype, and the sum of the factors; `pairs` is read once."""
    first, *rest = islice(pairs := iter(pairs), CHUNK)
    schema, chunk, total = first[0].schema, [first, *rest], 0.0
    sums = [np.zeros((span.stop - span.start) // dtype.itemsize) for dtype, span in schema.spans()]
    while chunk:
        for model, factor in chunk:
            if model.schema is not schema and model.schema.specs != schema.specs:
                raise ValueError(f"models of different networks: {describe_difference(model.schema, schema)}")
            total += factor
        for (dtype, span), out in zip(schema.spans(), sums, strict=True):
            _add([(model.buffer[span].view(dtype), np.float64(factor)) for model, factor in chunk], out)
        chunk = list(islice(pairs, CHUNK))
    return schema, sums, total


def _to_model(schema: Schema, sums: Iterable[Array]) -> Model:
    buffer = np.empty(schema.nbytes, np.uint8)
    for (dtype, span), array in zip(schema.spans(), sums, strict=True):
        buffer[span].view(dtype)[:] = array if dtype.kind == "f" else np.rint(array)
    return Model(schema, buffer)


def _add(rows: list[tuple[Array, np.float64]], out: Array) -> None:
    """Adds row * factor in the order of the rows: float addition is not associative, so the order must be the same."""
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        for row, factor in rows:
            out[block] += row[block] * factor


def identity(payload: Model) -> Model:
    """The payload, if it is a model."""
    return payload


def mean(replies: Mapping[str, Reply[P]], select: Callable[[P], Model] = identity) -> Model:  # type: ignore[assignment]  # default
    """The mean of the replies' models, weighted by `Reply.weight`: sum_k w_k x_k / sum_k w_k, summed in site order.

    `select` returns the model in a payload. Replies are read a few at a time, so that memory does not grow with their
    number. Raises ValueError if there are no replies or the weights do not add up to more than zero.
    """
    if not replies:
        raise ValueError("there are no replies; expected at least 1")
    ordered = (replies[site] for site in sorted(replies))
    schema, sums, total = _weighted_sum((select(reply.payload), reply.weight) for reply in ordered)
    if not total > 0:
        raise ValueError(f"the weights of {len(replies)} replies add up to {total}; expected more than 0")
    return _to_model(schema, (array / total for array in sums))
