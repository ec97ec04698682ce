"""Models: read-only views of one buffer, exact sums, and errors that name the tensor."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raysim import Model, Reply, combine, load, mean, weights
from raysim.core.model import schema_of


def model(**arrays: list[float]) -> Model:
    return Model.of({name: np.array(values, np.float32) for name, values in arrays.items()})


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_arrays_keep_their_name_shape_and_dtype() -> None:
    given = {
        "half": np.array([1, 2, 3], np.float16),
        "count": np.array(7),
        "flags": np.array([[True], [False]]),
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.empty((0, 4), np.float32),
        "wide": np.array([1e-300]),
    }
    made = Model.of(given)
    assert set(made) == set(given)
    for name, array in given.items():
        assert made[name].dtype == array.dtype
        assert made[name].shape == array.shape
        np.testing.assert_array_equal(made[name], array)
    assert made.nbytes == sum(array.nbytes for array in given.values())


def test_every_view_is_aligned_for_any_sizes() -> None:
    # 3 floats are 12 bytes: an 8-byte integer directly behind them would not be aligned.
    given = np.zeros(3, np.float32), np.array(1), np.zeros(1, np.float16), np.ones(1, bool)
    made = Model.of({str(number): array for number, array in enumerate(given)})
    assert all(array.flags.aligned for array in made.values())


def test_views_are_read_only_and_share_the_buffer() -> None:
    made = model(w=[1, 2])
    with pytest.raises(ValueError, match="read-only"):
        made["w"][0] = 5
    with pytest.raises(ValueError, match="read-only"):
        made.buffer[0] = 5
    assert np.shares_memory(made["w"], made.buffer)


def test_a_model_does_not_change_with_its_source_arrays() -> None:
    array = np.ones(2, np.float32)
    made = Model.of({"w": array})
    array[:] = 9
    assert made == model(w=[1, 1])


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        model(w=[1])["v"]


def test_equality_is_of_names_dtypes_and_bits() -> None:
    assert model(w=[1, 2]) == model(w=[1, 2])
    assert model(w=[float("nan")]) == model(w=[float("nan")])
    assert model(w=[0.0]) != model(w=[-0.0])
    assert model(w=[1]) != model(v=[1])
    assert model(w=[1]) != Model.of({"w": np.array([1.0])})
    assert model(w=[1]) != {"w": np.array([1], np.float32)}
    assert model(w=[1, 2, 3, 4]) != Model.of({"w": np.array([[1, 2], [3, 4]], np.float32)})


def test_the_order_of_names_does_not_matter() -> None:
    assert model(a=[1], b=[2]) == model(b=[2], a=[1])


def test_or_is_the_union_with_the_right_values() -> None:
    joined = model(a=[1], b=[2]) | model(b=[3], c=[4])
    assert {name: array.item() for name, array in joined.items()} == {"a": 1, "b": 3, "c": 4}
    assert (model(a=[1]) | model(a=[2])) == model(a=[2])


def test_or_keeps_which_tensors_are_parameters() -> None:
    whole = weights(network())
    again = whole.parameters | whole.buffers
    assert set(again.parameters) == set(whole.parameters)
    assert set(again.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_parameters_and_buffers_of_a_network() -> None:
    made = weights(network())
    assert set(made.parameters) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert made["1.num_batches_tracked"].dtype == np.int64
    assert made.parameters.nbytes == 4 * (6 + 3 + 3 + 3)
    assert made.only(["0.bias"]).nbytes == 12
    assert len(weights(nn.Linear(1, 1)).buffers) == 0


def test_pickling_keeps_bits_schema_and_read_only_flag() -> None:
    made = weights(network())
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert again.schema is made.schema  # the same object: `load` and `combine` are then fast
    assert not again["0.weight"].flags.writeable


def test_pickling_out_of_band_copies_nothing() -> None:
    made = weights(network())
    apart: list[pickle.PickleBuffer] = []
    message = pickle.dumps(made, protocol=5, buffer_callback=apart.append)
    again = pickle.loads(message, buffers=apart)
    assert [buffer.raw().nbytes for buffer in apart] == [made.nbytes]
    assert np.shares_memory(again.buffer, made.buffer)
    assert again == made


def test_weights_are_a_copy_and_load_restores_them() -> None:
    first, second = network(), network()
    kept = weights(first)
    load(second, kept)
    assert weights(second) == kept
    with torch.no_grad():
        first[0].weight.add_(1)  # type: ignore[index]
        second[0].bias.add_(1)  # type: ignore[index]
    assert kept != weights(first)
    assert kept != weights(second)


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

    net = Tied()
    kept = weights(net)
    assert set(kept.parameters) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    load(net, kept)
    assert net.a.weight is net.b.weight


def test_load_without_buffers_does_not_change_them() -> None:
    net, other = network(), network()
    net[1].running_mean.fill_(5)  # type: ignore[index]
    load(net, weights(other).parameters)
    assert weights(net).parameters == weights(other).parameters
    assert weights(net)["1.running_mean"].tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": np.zeros((1, 2), np.float32)}, "it has no 'bias'"),
        ({"weight": np.zeros((2, 1), np.float32), "bias": np.zeros(1, np.float32)}, r"'weight' is float32\(2, 1\)"),
        ({"weight": np.zeros((1, 2)), "bias": np.zeros(1, np.float32)}, r"'weight' is float64\(1, 2\), not float32"),
        (
            {"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32), "x": np.zeros(1, np.float32)},
            r"it has unexpected tensors: \['x'\]",
        ),
    ],
)
def test_load_names_the_tensor_that_does_not_fit(given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(nn.Linear(2, 1), Model.of(given))


def test_combine_is_the_sum_of_multiples() -> None:
    # 2 * [1, 2] - 1 * [10, 0] = [-8, 4]
    assert combine([model(w=[1, 2]), model(w=[10, 0])], [2, -1]) == model(w=[-8, 4])


def test_combine_sums_in_float64() -> None:
    # In float32, 1e8 + 1 is 1e8: the 1 would be lost.
    assert combine([model(w=[1e8]), model(w=[1]), model(w=[-1e8])], [1, 1, 1]) == model(w=[1])


def test_combine_over_more_than_one_block() -> None:
    rows = [np.arange(200_000, dtype=np.float32), np.full(200_000, 2, np.float32)]
    made = combine([Model.of({"w": row}) for row in rows], [1, 3])
    np.testing.assert_array_equal(made["w"], rows[0] + 6)


def test_combine_refuses_models_of_different_networks() -> None:
    with pytest.raises(ValueError, match="models of different networks: it has no 'w'"):
        combine([model(w=[1]), model(v=[1])], [1, 1])


def test_operators_are_the_sums_of_combine() -> None:
    a, b = model(w=[1, 2]), model(w=[10, 0])
    assert a + b == model(w=[11, 2])
    assert a - b == model(w=[-9, 2])
    for factor in (3, 3.0, np.float32(3), np.float64(3), np.int64(3)):
        assert a * factor == factor * a == model(w=[3, 6])
    assert a + 0.5 * (b - a) == combine([a, b], [0.5, 0.5])


def test_operators_keep_dtypes_and_kinds_and_round_counters() -> None:
    net = network()
    net[1].num_batches_tracked.fill_(5)  # type: ignore[operator, index, union-attr]
    made = 0.3 * weights(net)
    assert made.schema is weights(net).schema
    assert made["1.num_batches_tracked"] == 2  # 1.5 is rounded to even, not truncated


@pytest.mark.parametrize("compute", [lambda a: a + 1, lambda a: 1 - a, lambda a: a * a, lambda a: a * "2"])
def test_operators_refuse_other_types(compute: Callable[[Model], object]) -> None:
    with pytest.raises(TypeError, match="Model"):
        compute(model(w=[1]))


def test_a_buffer_that_became_a_parameter_is_named() -> None:
    made = weights(network())
    with pytest.raises(ValueError, match=r"'1\.num_batches_tracked' is a parameter, not a buffer; .* Model\.like"):
        made + Model.of(made)


def test_operators_refuse_models_of_different_networks() -> None:
    with pytest.raises(ValueError, match="models of different networks: it has no 'w'"):
        model(w=[1]) + model(v=[1])


def test_like_keeps_dtypes_and_kinds_and_rounds_integers() -> None:
    example = weights(network())
    values = {name: np.full(array.shape, 1.7) for name, array in example.items()}
    made = example.like(values)
    assert made.schema is example.schema
    assert made["1.num_batches_tracked"] == 2
    assert made["0.bias"].tolist() == [np.float32(1.7)] * 3
    assert example.like(example) == example
    load(network(), made)
    assert model(w=[1, 2]).like({"w": [3, 4]}) == model(w=[3, 4])


def test_like_is_the_median_of_networks_with_batch_norm() -> None:
    models = [weights(network()) for _ in range(3)]
    made = models[0].like({name: np.median([each[name] for each in models], axis=0) for name in models[0]})
    load(network(), made)
    assert made["0.bias"][1] == sorted(each["0.bias"][1] for each in models)[1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.zeros(2)}, "the arrays have no 'n'"),
        ({"w": np.zeros(2), "n": 0, "x": 0}, "the arrays have an unexpected 'x'"),
        ({"w": np.zeros((2, 1)), "n": 0}, r"'w' has the shape \(2, 1\): expected \(2,\)"),
        ({"w": np.zeros(2), "n": float("nan")}, "'n' has values outside the range of uint8, 0 to 255"),
        ({"w": np.zeros(2), "n": 256}, "'n' has values outside the range of uint8, 0 to 255"),
    ],
)
def test_like_names_the_tensor_that_does_not_fit(arrays: dict[str, Any], message: str) -> None:
    example = Model.of({"w": np.zeros(2, np.float32), "n": np.array(0, np.uint8)})
    with pytest.raises(ValueError, match=message):
        example.like(arrays)


def test_mean_is_weighted() -> None:
    # (1 * 1 + 3 * 5) / 4 = 4
    replies = {"a": Reply(model(w=[1]), weight=1), "b": Reply(model(w=[5]), weight=3)}
    assert mean(replies) == model(w=[4])


def test_mean_rounds_integers() -> None:
    # (1 * 10 + 2 * 11) / 3 = 10.67; truncation would give 10.
    replies = {
        "a": Reply(Model.of({"n": np.array(10)}), weight=1),
        "b": Reply(Model.of({"n": np.array(11)}), weight=2),
    }
    assert mean(replies)["n"] == 11
    assert mean(replies)["n"].dtype == np.int64


def test_mean_does_not_depend_on_the_order_of_replies() -> None:
    # Summed in reverse order, the third value would be lost when it is added to the second.
    values = {"a": 1e16, "b": -1e16, "c": 1.0}
    replies = {site: Reply(Model.of({"w": np.array([value])})) for site, value in values.items()}
    assert mean(replies)["w"] == pytest.approx(1 / 3)
    assert mean(dict(reversed(replies.items()))) == mean(replies)


def test_mean_of_a_part() -> None:
    replies = {"a": Reply((model(w=[1]), "more"), weight=1), "b": Reply((model(w=[3]), "more"), weight=1)}
    assert mean(replies, select=lambda payload: payload[0]) == model(w=[2])


@pytest.mark.parametrize("given", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_mean_needs_weights_above_zero(given: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected (more than 0|at least 1)$"):
        mean({str(i): Reply(model(w=[1]), weight=weight) for i, weight in enumerate(given)})


def test_equal_schemas_are_the_same_object() -> None:
    assert schema_of(weights(network()).schema.specs) is weights(network()).schema
