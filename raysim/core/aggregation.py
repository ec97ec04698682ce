"""Weighted sums and means of models, in site order and in float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from raysim.core.model import Array, Model, describe_difference

if TYPE_CHECKING:
    from raysim.core.contracts import Reply


P = TypeVar("P")
Row = tuple[Array, np.float64]  # the entries of a model, and their factor
BLOCK = 1 << 16  # entries summed at a time, so that the float64 block stays in the CPU cache
CHUNK = 16  # models summed in one pass over the sum: few passes, and few replies in memory
THREADS = min(8, os.cpu_count() or 1)  # more are not faster; the bits of a sum do not depend on their number
THREADED = 1 << 20  # entries from which a sum uses threads


def combine(models: Iterable[Model], factors: Iterable[float]) -> Model:
    """The sum of `factors[i] * models[i]`, in the given order and in float64, converted to the dtypes of the models.

    Integer tensors (counters of BatchNorm) are rounded to the nearest. Raises ValueError if the schemas differ.
    """
    last, sums, _ = _sum_all_but_last(zip(models, factors, strict=True))
    return _to_model(last, sums)


def _sum_all_but_last(pairs: Iterable[tuple[Model, float]]) -> tuple[list[tuple[Model, float]], list[Array], float]:
    """The last models with their factors, the sum of model * factor over the others, and the sum of all factors.

    The sum is a float64 array per dtype; there is none for up to CHUNK models. `pairs` is read once.
    """
    chunk, sums, total = list(islice(pairs := iter(pairs), CHUNK)), list[Array](), 0.0
    schema = chunk[0][0].schema
    while True:
        for model, factor in chunk:
            if model.schema is not schema and model.schema.specs != schema.specs:
                raise ValueError(f"models of different networks: {describe_difference(model.schema, schema)}")
            total += factor
        following = next(pairs, None)
        if following is None:
            return chunk, sums, total
        sums = sums or [np.zeros((span.stop - span.start) // dtype.itemsize) for dtype, span in schema.spans()]
        for (dtype, span), out in zip(schema.spans(), sums, strict=True):
            _for_blocks(partial(_add, _rows(chunk, dtype, span), out), len(out))
        chunk = [following, *islice(pairs, CHUNK - 1)]


def _rows(chunk: Iterable[tuple[Model, float]], dtype: np.dtype[Any], span: slice) -> list[Row]:
    return [(model.buffer[span].view(dtype), np.float64(factor)) for model, factor in chunk]


def _to_model(last: Sequence[tuple[Model, float]], sums: Sequence[Array], divisor: float = 1.0) -> Model:
    """The sum of `sums`, which may be empty, and of the last models, divided by `divisor`."""
    schema = last[0][0].schema
    buffer = np.empty(schema.nbytes, np.uint8)
    for number, (dtype, span) in enumerate(schema.spans()):
        rows, out = _rows(last, dtype, span), buffer[span].view(dtype)
        _for_blocks(partial(_finish, rows, sums[number] if sums else None, divisor, out), len(out))
    return Model(schema, buffer)


def _finish(rows: Sequence[Row], before: Array | None, divisor: float, out: Array, blocks: Sequence[slice]) -> None:
    """Writes (before + the sum of row * factor) / divisor to `out`; `before` is zero if it is None."""
    sums, memory = np.empty((2, min(BLOCK, len(out))))
    for block in blocks:
        total = sums[: len(out[block])]
        total[:] = 0.0 if before is None else before[block]
        _add_block(rows, block, total, memory)
        total /= divisor
        out[block] = total if out.dtype.kind == "f" else np.rint(total)


def _add(rows: Sequence[Row], out: Array, blocks: Sequence[slice]) -> None:
    """Adds row * factor of each row to `out`."""
    memory = np.empty(min(BLOCK, len(out)))
    for block in blocks:
        _add_block(rows, block, out[block], memory)


def _add_block(rows: Sequence[Row], block: slice, total: Array, memory: Array) -> None:
    """Adds in the order of the rows: float addition is not associative, so the order must always be the same."""
    product = memory[: len(total)]
    for row, factor in rows:
        product[:] = row[block]  # faster than a product of different dtypes
        product *= factor
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
    last, sums, total = _sum_all_but_last((select(reply.payload), reply.weight) for reply in ordered)
    if not total > 0:
        raise ValueError(f"the weights of {len(replies)} replies add up to {total}; expected more than 0")
    return _to_model(last, sums, total)
