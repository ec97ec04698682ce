"""Networks with given weights, and networks of which a part is trained."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from raysim import ConfigError, Model, train_only, weights
from raysim.core.module_copy import copy_module
from raysim.core.network_factories import (
    FrozenBatchNorm,
    InitialWeights,
    PretrainedNetwork,
    base_factory,
    freeze,
    initial_weights,
    with_all_tensors,
)
from raysim.core.seeding import seeded
from tests.support import toy


def network() -> nn.Sequential:
    with seeded("network"):
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[1].running_mean += torch.tensor([1.0, 2.0, 3.0])
    return net


def test_a_frozen_network_has_the_same_outputs_in_training_and_evaluation_mode() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    expected = network().eval()(x)
    frozen = freeze(network(), ["2.*"])
    assert torch.equal(frozen.train()(x), expected)
    assert torch.equal(frozen.eval()(x), expected)


def test_only_trained_tensors_are_in_the_model() -> None:
    frozen = freeze(network(), ["2.*"])
    assert set(weights(frozen)) == {"2.weight", "2.bias"}
    assert [name for name, _ in frozen.named_parameters()] == ["2.weight", "2.bias"]
    assert isinstance(frozen[1], FrozenBatchNorm)


def test_a_layer_with_a_trained_tensor_keeps_its_buffers() -> None:
    model = weights(freeze(network(), ["1.bias"]))
    assert set(model) == {"1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(model.parameters) == {"1.bias"}


def test_a_shared_tensor_is_trained_if_one_of_its_names_matches() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    assert set(weights(freeze(net, ["b.weight"]))) == {"a.weight", "b.weight"}


def test_copies_keep_the_frozen_part() -> None:
    frozen, x = freeze(network(), ["2.*"]), torch.ones(2, 2)
    for copied in (copy_module(frozen), pickle.loads(pickle.dumps(frozen))):
        assert torch.equal(copied(x), frozen(x))
        assert set(weights(copied)) == set(weights(frozen))


def test_a_task_trains_what_the_patterns_match() -> None:
    task = replace(toy.two_sites(), network=network)
    part = train_only(task, ["2.*"])
    assert set(weights(part.start(0))) == {"2.weight", "2.bias"}
    assert weights(with_all_tensors(part).start(0)) == weights(task.start(0))
    assert train_only(part, None).network is network
    assert train_only(part, ["0.*"]).start(0)[0].weight.shape == (3, 2)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("head.*", "'head.\\*' matches no parameter; .*2.weight"), ("1.running_*", "matches buffers only")],
)
def test_patterns_without_a_parameter_are_refused(pattern: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        train_only(replace(toy.two_sites(), network=network), [pattern])


def test_given_weights_replace_those_of_the_seed() -> None:
    loaded = Model.of({"weight": np.array([[2.5]], np.float32)})
    initial = InitialWeights("file", "0", loaded, missing=("bias",))
    task = replace(toy.two_sites(), network=PretrainedNetwork(partial(nn.Linear, 1, 1), initial))
    first, second = (weights(task.start(seed)) for seed in (0, 1))
    assert first["weight"] == second["weight"] == 2.5
    assert first["bias"] != second["bias"]
    part = train_only(task, ["bias"])
    assert initial_weights(part) == initial_weights(task) == initial
    assert part.start(0).weight == 2.5
    assert base_factory(part.network) == task.network.factory
    assert initial_weights(toy.two_sites()) is None


def test_the_report_lists_what_did_not_match() -> None:
    loaded = Model.of({"weight": np.zeros((1, 1), np.float32)})
    initial = InitialWeights("f.pt", "0", loaded, ("bias",), ("other",), ("head float32(3, 2), not (4, 2)",))
    assert initial.report == (
        "initial weights: 1 of 3 tensors of the network from f.pt; not in the file: bias; "
        "of another shape: head float32(3, 2), not (4, 2); not in the network: other"
    )
    assert initial.to_mapping()["missing"] == ["bias"]
