"""Models as vectors: conversion, norms, distances, inner products of many models, and steps along directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysim.core.contracts import Array
from raysim.core.model import Model

MAX_SHIFTS = 100  # mean-shift steps; it usually converges within a few
BLOCK = 1 << 20  # entries, of all models together, that are in float64 at a time


def to_vector(model: Model) -> Array:
    """All entries of the model in one new float32 array, in order of tensor name."""
    return np.concatenate([model[name].reshape(-1) for name in sorted(model)], dtype=np.float32)


def from_vector(values: Array, like: Model) -> Model:
    """The model of the vector `values`, with the names, shapes and dtypes of `like`."""
    names = sorted(like)
    pieces = np.split(values, np.cumsum([like[name].size for name in names])[:-1])
    tensors = {n: p.reshape(like[n].shape).astype(like[n].dtype) for n, p in zip(names, pieces, strict=True)}
    return Model.of(tensors, like.parameters)


def model_norm(model: Model) -> float:
    """The Euclidean norm over all tensors, summed in float64."""
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in model.values())))


def translate(model: Model, direction: Model, step: float) -> Model:
    """`model + step * direction`. Tensors that are not in `direction` are unchanged."""
    return model | Model.of({n: (model[n] + step * d.astype(np.float64)).astype(d.dtype) for n, d in direction.items()})


def gram_matrix(models: Sequence[Model], origin: Model | None = None) -> Array:
    """(K, K) inner products of the K models, or of their differences from `origin`, in float64.

    Works block by block, so that the K models are never copied. Tensors are summed in the order of the first model.
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


def weighted_variance(products: Array, share: Array) -> float:
    """sum_k p_k ||x_k - x||^2 with x = sum_k p_k x_k, from the inner products of the x_k and the shares p_k."""
    return max(0.0, float(share @ np.diag(products) - share @ products @ share))


def mean_cosine(products: Array) -> float:
    """The mean cosine over all pairs, from the inner products. It is 1 if no pair has two nonzero norms."""
    norms = np.sqrt(np.outer(np.diag(products), np.diag(products)))
    pairs = np.triu(norms > 0, 1)
    return float((products[pairs] / norms[pairs]).mean()) if pairs.any() else 1.0


def mean_shift(products: Array, share: Array, bandwidth: float) -> Array:
    """The weight (K,) of each x_k in the densest point. Mean shift finds this point, starting at the weighted mean.

    The kernel is Gaussian. Its width is `bandwidth` times the median distance from the mean.
    """
    parts = share
    for step in range(MAX_SHIFTS):
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


def tensor_distances(one: Model, other: Model, per_tensor: bool = True) -> Array:
    """||one - other|| in float32: one value per tensor in the model's order (T,), or one for the whole model (1,)."""
    squares = [np.square(np.float64(one[name]) - other[name]).sum() for name in one]
    return np.sqrt(squares if per_tensor else [np.sum(squares)]).astype(np.float32)


def total_distance(distances: Array) -> float:
    """The distance of whole models, from the distances of their tensors."""
    return float(np.sqrt(np.square(np.float64(distances)).sum()))


def relative_distance(model: Model, reference: Model) -> float:
    """||model - reference|| / ||reference|| over the parameters; the distance itself if the reference is zero."""
    names = [spec.name for spec in reference.schema.specs if spec.parameter]
    squares = [np.square(np.float64(model[name]) - reference[name]).sum() for name in names]
    return float(np.sqrt(np.sum(squares)) / (model_norm(reference.only(names)) or 1.0))


def move_to_distance(origin: Model, towards: Model, distances: Array) -> Model:
    """origin + min(1, d / ||towards - origin||) (towards - origin), with d per tensor (T,) or for the model (1,)."""
    per_tensor = len(distances) == len(origin)
    groups = [[name] for name in origin] if per_tensor else [list(origin)]
    moved: dict[str, Array] = {}
    for names, d, full in zip(groups, distances, tensor_distances(origin, towards, per_tensor), strict=True):
        for name in names:
            between = origin[name] + np.float32(d / full if full else 0) * (towards[name] - origin[name])
            moved[name] = towards[name] if d >= full else between
    return Model.of(moved)


def extrapolate_distance(measured: Sequence[tuple[int, Array]], time: int) -> Array:
    """Distances at `time` on the least-squares line through `measured` (time, distances), in float32 and at least 0."""
    times, values = np.array([t for t, _ in measured], float), np.array([d for _, d in measured], float)
    centred = times - times.mean()
    slope = (centred[:, None] * values).sum(0) / (centred @ centred) if len(times) > 1 else 0.0
    line: Array = np.maximum(values.mean(0) + slope * (time - times.mean()), 0).astype(np.float32)
    return line
