"""Serialization: states are restored exactly, only trusted modules are imported, digests cover every bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from raysim import Model
from raysim.core.results import ResumePoint
from raysim.storage.digest import digest
from raysim.storage.serialization import decode, encode


@dataclass(frozen=True)
class Mine:
    number: int
    held: Any = None


class Outer:
    @dataclass(frozen=True)
    class Inner:
        number: int


def encoded_and_decoded(tree: Any) -> Any:
    described, arrays = encode(tree)
    return decode(json.loads(json.dumps(described)), arrays, trusted=[__name__])


def model() -> Model:
    return Model.of({"w": np.ones((2, 1), np.float32), "n": np.array(3)}, parameters=["w"])


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        5,
        -0.1,
        "text",
        [1, [2, None]],
        (1, (2,)),
        {"a": 1, 2: "b"},
        {},
        [],
        (),
        model(),
        {"site": model()},
        Mine(1, Mine(2, [model(), (1, 2)])),
        Outer.Inner(4),
        ResumePoint(3, model(), {"a": None}),
    ],
)
def test_round_trip(tree: Any) -> None:
    again = encoded_and_decoded(tree)
    assert again == tree
    assert type(again) is type(tree)


def test_models_keep_the_names_of_parameters() -> None:
    assert list(encoded_and_decoded(model()).parameters) == ["w"]


def test_floats_are_restored_bit_by_bit() -> None:
    values = [0.1, 1e-308, float("inf"), float("-inf")]
    assert encoded_and_decoded(values) == values
    assert np.isnan(encoded_and_decoded(float("nan")))


@pytest.mark.parametrize(
    "array", [np.array(5), np.zeros((0, 3)), np.array([[1, 2]], np.int8).T, np.array(True), np.arange(4)[::-1]]
)
def test_arrays_keep_shape_and_dtype(array: np.ndarray) -> None:
    again = encoded_and_decoded({"x": array})["x"]
    assert (again.shape, again.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(again, array)


def test_tensors_stay_tensors() -> None:
    again = encoded_and_decoded([torch.tensor([1.5, 2.0])])[0]
    assert isinstance(again, torch.Tensor)
    assert again.tolist() == [1.5, 2.0]


def test_arrays_are_named_by_their_position() -> None:
    assert set(encode(model())[1]) == {"w", "n"}
    assert set(encode({"bank": [np.zeros(1)], "site": model()})[1]) == {"bank/0", "site/w", "site/n"}


def test_similar_keys_have_different_arrays() -> None:
    tree = {"a/b": np.array([1]), "a": {"b": np.array([2])}, 1: np.array([3]), "1": np.array([4])}
    again = encoded_and_decoded(tree)
    assert [again["a/b"], again["a"]["b"], again[1], again["1"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [{1}]}, "a checkpoint cannot store the set at 'a/0'; use None, bool"),
        ({"a": {(1, 2): 3}}, "the key of type tuple at 'a'"),
        ([len], "the builtin_function_or_method at '0'"),
    ],
)
def test_an_unsupported_value_is_named_with_its_position(tree: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encode(tree)


def test_only_trusted_dataclasses_are_imported() -> None:
    described, arrays = encode(Mine(1))
    with pytest.raises(ValueError, match="not in a module of raysim or of the run's algorithm"):
        decode(described, arrays)
    assert decode(described, arrays, trusted=[__name__]) == Mine(1)


def test_a_class_that_is_not_a_dataclass_is_refused() -> None:
    with pytest.raises(ValueError, match="not a dataclass"):
        decode({"dataclass": "raysim.core.seeding:stable_seed", "fields": {}}, {})


def test_a_digest_changes_with_every_bit() -> None:
    base = digest(Mine(1, {"a": np.zeros(2, np.float32)}))
    assert base == digest(Mine(1, {"a": np.zeros(2, np.float32)}))
    others = [
        Mine(2, {"a": np.zeros(2, np.float32)}),
        Mine(1, {"b": np.zeros(2, np.float32)}),
        Mine(1, {"a": np.zeros(2, np.float64)}),
        Mine(1, {"a": np.zeros((1, 2), np.float32)}),
        Mine(1, {"a": np.array([0, -0.0], np.float32)}),
        Mine(1, {"a": np.array([0, 1e-45], np.float32)}),
        Mine(1, {"a": torch.zeros(2)}),
        Mine(1, ["a", np.zeros(2, np.float32)]),
    ]
    assert len({base, *map(digest, others)}) == len(others) + 1
    assert digest(np.zeros(())) != digest(np.zeros(1))
    assert digest([1], {"a": [2]}) != digest([1], {"b": [2]}) != digest([1])
    assert digest([1], {"a": [2], "b": [3]}) == digest([1], {"b": [3], "a": [2]})
    assert len(base) == 64


def test_a_digest_is_the_same_after_saving_and_loading() -> None:
    tree = {"m": model(), "x": np.float32(1.5), "t": torch.ones(2)}
    assert digest(encoded_and_decoded(tree)) == digest(tree)
