"""Seeds: the same in every process, different for every part of the key, and without side effects."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from raysim.core.seeding import numpy_generator, seeded, stable_seed


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002 - a generator that `seeded` seeds


def test_a_seed_depends_on_every_part_of_the_key_and_on_their_order() -> None:
    keys: list[tuple[int | str, ...]] = [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), (1, 2, 0), (), ("a", "b"), ("ab",)]
    assert len({stable_seed(*key) for key in keys}) == len(keys)


def test_generators_of_the_same_key_draw_the_same_numbers() -> None:
    np.testing.assert_array_equal(numpy_generator(3, "x").random(5), numpy_generator(3, "x").random(5))
    assert numpy_generator(3, "x").random() != numpy_generator(4, "x").random()


def test_seeded_draws_the_same_numbers_and_restores_the_generators() -> None:
    before = draws()
    with seeded(1, "a"):
        first = draws()
    with seeded(1, "a"):
        assert draws() == first
    with seeded(1, "b"):
        assert all(new != old for new, old in zip(draws(), first, strict=True))
    with seeded(5):
        before = draws()
        with seeded(1, "a"):
            draws()
        after = draws()
    with seeded(5):
        assert (draws(), draws()) == (before, after)


def test_seeded_restores_after_an_error() -> None:
    with seeded(5):
        expected = draws()
    with seeded(5):
        with pytest.raises(ZeroDivisionError), seeded(6):
            raise ZeroDivisionError
        assert draws() == expected
