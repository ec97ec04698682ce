"""Models as vectors: lengths, inner products of many at once, and back from a vector to a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysim.core.contracts import Array
from raysim.core.model import Model

SHIFTS = 100  # mean-shift steps at most; it settles within a few
BLOCK = 1 << 20  # entries of all the models that are looked at together, in float64


def vector(model: Model) -> Array:
    """All entries, in order of name, as one float32 array of its own."""
    return np.concatenate([model[name].reshape(-1) for name in sorted(model)], dtype=np.float32)


def from_vector(values: Array, like: Model) -> Model:
    """The model of the names, shapes and dtypes of `like` whose `vector` is `values`."""
    names = sorted(like)
    pieces = np.split(values, np.cumsum([like[name].size for name in names])[:-1])
    tensors = {n: p.reshape(like[n].shape).astype(like[n].dtype) for n, p in zip(names, pieces, strict=True)}
    return Model.of(tensors, like.parameters)


def norm(model: Model) -> float:
    """The Euclidean length, summed in float64."""
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in model.values())))


def translate(model: Model, direction: Model, step: float) -> Model:
    """`model + step * direction`; what the direction leaves out stays."""
    return model | Model.of({n: (model[n] + step * d.astype(np.float64)).astype(d.dtype) for n, d in direction.items()})


def gram(models: Sequence[Model], origin: Model | None = None) -> Array:
    """(K, K) inner products of the K models, or of their differences from `origin`, in float64.

    Looked at a few entries at a time, so that K models are never copied. Names come in the order of the first's.
    """
    result, step = np.zeros((len(models), len(models))), max(1, BLOCK // len(models))
    for name in models[0]:
        rows = [model[name].reshape(-1) for model in models]
        start = None if origin is None else origin[name].reshape(-1)
        for first in range(0, rows[0].size, step):
            block = slice(first, first + step)
            x = np.stack([row[block] for row in rows]).astype(np.float64)
            x -= 0.0 if start is None else start[block]
            result += x @ x.T
    return result


def variance(products: Array, share: Array) -> float:
    """sum_k p_k ||x_k - x||^2 with x = sum_k p_k x_k, from the inner products of the x_k."""
    return max(0.0, float(share @ np.diag(products) - share @ products @ share))


def cosine(products: Array) -> float:
    """The mean cosine of all pairs, from the inner products; 1 where there is no pair of lengths above zero."""
    length = np.sqrt(np.outer(np.diag(products), np.diag(products)))
    pairs = np.triu(length > 0, 1)
    return float((products[pairs] / length[pairs]).mean()) if pairs.any() else 1.0


def mean_shift(products: Array, share: Array, bandwidth: float) -> Array:
    """The part of each x_k in the densest point that mean shift finds from their mean.

    The kernel is Gaussian, `bandwidth` times as wide as the median distance from the mean.
    """
    parts = share
    for step in range(SHIFTS):
        squares = np.maximum(0.0, np.diag(products) - 2 * products @ parts + parts @ products @ parts)
        if step == 0:
            width = bandwidth * float(np.median(np.sqrt(squares)))
            if width == 0:
                return share
        before = parts
        kernel = share * np.exp((squares.min() - squares) / (2 * width**2))
        parts = kernel / kernel.sum()
        if np.abs(parts - before).max() < 1e-12:
            break
    return parts


def distance_between(one: Model, other: Model, each: bool = True) -> Array:
    """||one - other||: of each tensor, in the model's order, or of all together; float32."""
    squares = [np.square(np.float64(one[name]) - other[name]).sum() for name in one]
    return np.sqrt(squares if each else [np.sum(squares)]).astype(np.float32)


def length(distance: Array) -> float:
    """The distance over the whole model."""
    return float(np.sqrt(np.square(np.float64(distance)).sum()))


def at_distance(origin: Model, towards: Model, distance: Array) -> Model:
    """origin + min(1, d / ||towards - origin||) (towards - origin): of each tensor, or of all if d is one number."""
    each = len(distance) == len(origin)
    names = [[name] for name in origin] if each else [list(origin)]
    found: dict[str, Array] = {}
    for group, d, far in zip(names, distance, distance_between(origin, towards, each), strict=True):
        for name in group:
            between = origin[name] + np.float32(d / far if far else 0) * (towards[name] - origin[name])
            found[name] = towards[name] if d >= far else between
    return Model.of(found)


def extrapolated_distance(measured: Sequence[tuple[int, Array]], time: int) -> Array:
    """What is never below 0, at `time`: on the line of least squares through values at other times, float32."""
    times, values = np.array([t for t, _ in measured], float), np.array([d for _, d in measured], float)
    along = times - times.mean()
    slope = (along[:, None] * values).sum(0) / (along @ along) if len(times) > 1 else 0.0
    line: Array = np.maximum(values.mean(0) + slope * (time - times.mean()), 0).astype(np.float32)
    return line
