"""Models as vectors, and values computed from their inner products."""

from __future__ import annotations

import numpy as np
import pytest

from raysim import Model
from raysim.training.model_geometry import (
    from_vector,
    gram_matrix,
    mean_cosine,
    mean_shift,
    model_norm,
    relative_distance,
    to_vector,
    translate,
    weighted_variance,
)


def model(*values: float) -> Model:
    """A model of two tensors: one has the first value, the other has the rest."""
    return Model.of({"b": np.float32(values[:1]), "a": np.float32(values[1:])})


def test_to_vector_sorts_by_name_and_from_vector_inverts_it() -> None:
    assert to_vector(model(1, 2, 3)).tolist() == [2, 3, 1]
    assert from_vector(to_vector(model(1, 2, 3)), model(0, 0, 0)) == model(1, 2, 3)


def test_norm_and_translation() -> None:
    assert model_norm(model(2, 3, 6)) == 7
    assert translate(model(1, 1, 1), model(1, 2, 3), -0.5) == model(0.5, 0, -0.5)


def test_translation_does_not_change_buffers() -> None:
    whole = Model.of({"w": np.float32([1]), "mean": np.float32([5])}, ["w"])
    after = translate(whole, Model.of({"w": np.float32([1])}), 2.0)
    assert after == Model.of({"w": np.float32([3]), "mean": np.float32([5])}, ["w"])


def test_inner_products_from_an_origin() -> None:
    found = gram_matrix([model(1, 0, 0), model(1, 2, 0)], model(0, 0, 1))
    assert found.tolist() == [[2, 2], [2, 6]]
    assert gram_matrix([model(1, 0, 0), model(1, 2, 0)]).tolist() == [[1, 1], [1, 5]]


@pytest.mark.parametrize("uniform", [True, False])
def test_half_the_pairwise_distances_are_the_variance(uniform: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7)).astype(np.float32)
    share = np.full(5, 0.2) if uniform else np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    pairs = 0.5 * sum(
        share[i] * share[j] * np.square(x[i].astype(float) - x[j]).sum() for i in range(5) for j in range(5)
    )
    assert weighted_variance(gram_matrix([Model.of({"w": row}) for row in x]), share) == pytest.approx(pairs, rel=1e-6)


def test_cosines_of_pairs() -> None:
    assert mean_cosine(gram_matrix([model(1, 0, 0), model(0, 1, 0)])) == 0
    assert mean_cosine(gram_matrix([model(1, 0, 0), model(-3, 0, 0), model(2, 0, 0)])) == pytest.approx(
        (-1 + 1 - 1) / 3
    )
    assert mean_cosine(gram_matrix([model(1, 0, 0)])) == 1
    assert mean_cosine(gram_matrix([model(0, 0, 0), model(1, 0, 0)])) == 1


def test_mean_shift_finds_the_majority_or_with_a_wide_kernel_the_mean() -> None:
    products = gram_matrix([model(0, 0, 0), model(0.1, 0, 0), model(-0.1, 0, 0), model(50, 0, 0)])
    share = np.full(4, 0.25)
    assert mean_shift(products, share, 1e6) == pytest.approx(share, abs=1e-9)
    near = mean_shift(products, share, 0.2)
    assert near[3] < 1e-6
    assert near.sum() == pytest.approx(1)


def test_mean_shift_of_equal_points_returns_the_shares() -> None:
    share = np.array([0.25, 0.75])
    assert mean_shift(gram_matrix([model(1, 2, 3), model(1, 2, 3)]), share, 1.0).tolist() == share.tolist()


def test_relative_distance_is_over_parameters_and_absolute_from_zero() -> None:
    tensors = {"w": np.float32([3, 4]), "mean": np.float32([7])}
    reference, other = Model.of(tensors, ["w"]), Model.of(tensors | {"w": np.float32([3, 1])})
    assert relative_distance(other, reference) == pytest.approx(3 / 5)
    assert relative_distance(model(3, 4, 0), model(0, 0, 0)) == pytest.approx(5)
