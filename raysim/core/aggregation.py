"""Weighted sums and means of models, in site order and in float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from raysim.core.model import Array, Model, Schema, describe_difference

if TYPE_CHECKING:
    from raysim.core.contracts import Reply


P = TypeVar("P")
BLOCK = 1 << 16  # entries summed at a time, so that the float64 block stays in the CPU cache
CHUNK = 16  # models summed in one pass over the sum: few passes, and few replies in memory
THREADS = min(8, os.cpu_count() or 1)  # more are not faster; the bits of a sum do not depend on their number
THREADED = 1 << 20  # entries from which a sum uses threads


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
            rows = [(model.buffer[span].view(dtype), np.float64(factor)) for model, factor in chunk]
            _for_blocks(partial(_add, rows, out), len(out))
        chunk = list(islice(pairs, CHUNK))
    return schema, sums, total


def _to_model(schema: Schema, sums: Iterable[Array], divisor: float = 1.0) -> Model:
    buffer = np.empty(schema.nbytes, np.uint8)
    for (dtype, span), array in zip(schema.spans(), sums, strict=True):
        _for_blocks(partial(_divide, array, divisor, buffer[span].view(dtype)), len(array))
    return Model(schema, buffer)


def _divide(array: Array, divisor: float, out: Array, blocks: Sequence[slice]) -> None:
    for block in blocks:
        quotient = array[block] / divisor
        out[block] = quotient if out.dtype.kind == "f" else np.rint(quotient)


def _add(rows: list[tuple[Array, np.float64]], out: Array, blocks: Sequence[slice]) -> None:
    """Adds row * factor in the order of the rows: float addition is not associative, so the order must be the same."""
    memory = np.empty(min(BLOCK, len(out)))
    for block in blocks:
        total = out[block]
        product = memory[: len(total)]
        for row, factor in rows:
            np.multiply(row[block], factor, out=product)
            total += product


def _for_blocks(work: Callable[[Sequence[slice]], None], length: int) -> None:
    """Calls `work` with the blocks of an array of `length` entries; several threads share those of a large array."""
    blocks = [slice(start, start + BLOCK) for start in range(0, length, BLOCK)]
    if length < THREADED:
        work(blocks)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, (blocks[first::THREADS] for first in range(THREADS))))  # list: raises their errors


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
    return _to_model(schema, sums, total)
