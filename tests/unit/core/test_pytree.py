"""Payloads: their bytes, counted by hand, and values that cannot be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from raysim import Model
from raysim.core.pytree import leaves, make_readonly, nbytes


@dataclass(frozen=True)
class Pair:
    model: Model
    note: str


def pair() -> Pair:
    return Pair(Model.of({"w": np.zeros(3, np.float32)}), "é")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (None, 0),
        (True, 8),
        (7, 8),
        (0.5, 8),
        ("é", 2),
        (b"abc", 3),
        (np.zeros((2, 3), np.float32), 24),
        (np.float32(1), 4),
        (torch.zeros(5, dtype=torch.int64), 40),
        (Model.of({"w": np.zeros(3, np.float32), "n": np.array(1)}), 20),
        ({"a": 1, "long name": [2.0, (3, None)]}, 24),
        (pair(), 12 + 2),
        ([], 0),
    ],
)
def test_bytes_of(tree: Any, expected: int) -> None:
    assert nbytes(tree) == expected


@pytest.mark.parametrize("tree", [{1, 2}, [object()], {"a": lambda: None}])
def test_values_that_cannot_be_sent_are_refused(tree: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be sent: a payload may contain"):
        nbytes(tree)


def test_leaves_in_order() -> None:
    assert list(leaves({"a": [1, (2, 3)], "b": {"c": "x"}})) == [1, 2, 3, "x"]


def test_arrays_at_any_depth_become_read_only() -> None:
    tree = {"a": [np.zeros(2)], "b": Pair(pair().model, "")}
    assert make_readonly(tree) is tree
    with pytest.raises(ValueError, match="read-only"):
        tree["a"][0][0] = 1


def test_a_tensor_with_gradients_is_refused() -> None:
    with pytest.raises(TypeError, match=r"detach it, or send `weights\(net\)`"):
        make_readonly([torch.zeros(1, requires_grad=True)])
    assert make_readonly(torch.zeros(1)) == 0
