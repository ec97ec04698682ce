"""Training of several sites in one batch: it gives the results of training one by one, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.fedavg import FedAvg
from raysim import LocalFleet, RunError, Task, federate, weights
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.federation.plan import build_plan
from raysim.storage.digest import digest
from raysim.tasks.losses import make_segmentation_loss
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training import site_batch
from raysim.training.optimizers import LocalOptimizer, dump_optimizer_state, fuse_parameters, load_optimizer_state
from raysim.training.stacked_losses import can_stack_loss, stacked_losses
from raysim.training.stacked_networks import StackedNetworks
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.5, "lr": 0.1}
NAMES = ("a", "b", "c", "d")


def images(**keys: Any) -> Task:
    data = SyntheticData(sites=4, outside=(), cases=5, val=0, test=1, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"} | keys
    return Synthetic(data=data, network=network, batch_size=2).build()


def end(task: Task, batch_sites: int, algorithm: Any = None, rounds: int = 2, **options: Any) -> Any:
    fleet = LocalFleet(task, rounds=rounds, batch_sites=batch_sites)
    *_, last = federate(algorithm or FedAvg(**SGD), task, fleet, rounds=rounds, evaluate_every=rounds, **options)
    return last


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of sites of the trainings in one batch."""
    found: list[int] = []
    run = site_batch.StackedTraining.run

    def counting(self: Any) -> Any:
        found.append(len(self.requests))
        return run(self)

    monkeypatch.setattr(site_batch.StackedTraining, "run", counting)
    site_batch._can_stack.clear()
    return found


def difference(one: Any, other: Any) -> float:
    return max(float(np.abs(one[name].astype(float) - other[name].astype(float)).max()) for name in one)


@pytest.mark.parametrize("algorithm", [FedAvg(**SGD), FedAvg(**SGD, clip=0.1), FedAvg(**SGD, steps=4)])
def test_the_results_are_those_of_one_by_one(algorithm: FedAvg, stacked: list[int]) -> None:
    task = images()
    together, alone = end(task, 4, algorithm), end(task, 1, algorithm)
    assert stacked == [4, 4]
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    assert difference(together.state.model, alone.state.model) < 1e-6  # parameters and running statistics
    assert digest(together.state) == digest(end(task, 4, algorithm).state)


def test_the_next_network_of_a_process_may_have_dropout(stacked: list[int]) -> None:
    end(images(dropout=0.0), 4, rounds=1)
    end(images(dropout=0.5), 4, rounds=1)  # equal layers and shapes, but a random layer
    assert stacked == [4]


def test_a_group_has_sites_of_similar_size_and_does_not_depend_on_their_order() -> None:
    task = toy.task({name: toy.A[:1] * size for name, size in zip(NAMES, (3, 1, 2, 1), strict=True)})
    fleet = LocalFleet(task, batch_sites=2)
    assert fleet.groups(fleet._call(0)) == [("b", "d"), ("a", "c")]
    assert fleet.at(["d", "a", "c"]).groups(fleet._call(0)) == [("c", "d"), ("a",)]
    assert fleet.groups(fleet._call("judge")) == [("a",), ("b",), ("c",), ("d",)]
    apart = LocalFleet(task, batch_sites=4, own_threads={"c": 1})
    assert apart.groups(apart._call(0)) == [("c",), ("a", "b", "d")]


def test_sites_with_different_numbers_of_steps_train_separately(stacked: list[int]) -> None:
    task = toy.task({"a": toy.A, "b": toy.A, "c": toy.A * 9})
    assert end(task, 3).loss == pytest.approx(end(task, 1).loss, rel=1e-5)
    assert stacked == [2, 2]


def test_a_network_with_dropout_trains_one_by_one_with_the_same_bits(stacked: list[int]) -> None:
    task = images(dropout=0.5)
    assert digest(end(task, 4).state) == digest(end(task, 1).state)
    assert stacked == []


@pytest.mark.parametrize("name", ["DiceLoss", "DiceCELoss", "GeneralizedDiceLoss"])
def test_losses_are_one_operation_if_they_agree_with_single_ones(name: str) -> None:
    loss = make_segmentation_loss({"name": name})
    outputs = torch.randn(3, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = [torch.arange(2 * 64).reshape(2, 1, 8, 8) % 7 % 2 for _ in range(3)]
    stackable = can_stack_loss(loss, outputs[0], labels[0])
    assert stackable == (name != "GeneralizedDiceLoss")  # it selects values by a mask, which vmap does not support
    if stackable:
        found = stacked_losses(loss, outputs, labels)
        torch.testing.assert_close(found, [loss(*each) for each in zip(outputs, labels, strict=True)])


def test_a_loss_with_random_numbers_is_computed_for_each_network() -> None:
    def noisy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs + np.random.default_rng().normal()).square().mean()

    assert not can_stack_loss(noisy, torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8))


def test_a_wrong_label_fails_at_its_site() -> None:
    task = images()
    opened = task.open

    def with_wrong_label(site: str) -> Any:
        data = opened(site)
        wrong = np.full_like(data.train.labels, 9)
        return replace(data, train=replace(data.train, labels=wrong)) if site == task.inside[1] else data

    fleet = LocalFleet(replace(task, open=with_wrong_label), rounds=1, min_replies=0.5, batch_sites=4)
    *_, last = federate(FedAvg(**SGD), task, fleet, rounds=1, evaluate_every=2)
    assert [failure.sites for failure in last.failures] == [(task.inside[1],)]


@dataclass(frozen=True, kw_only=True)
class Noisy(FedAvg):
    """Adds noise to the gradients, and fails at one site."""

    failing: str = ""

    def client(self, site: Any, broadcast: Any) -> Any:
        def correct(parameters: list[nn.Parameter]) -> None:
            if site.name == self.failing:
                raise LookupError("no such organ")
            for parameter in parameters:
                parameter.grad += 0.01 * torch.randn_like(parameter)

        net = self.load_global(site, broadcast)
        loss = self.fit(net, site, correct=correct)
        return self.reply(net, site, loss)

    def reply(self, net: Any, site: Any, loss: float) -> Any:
        from raysim import Reply

        return Reply(self.make_update(net)[0], weight=len(site.data.train), metrics={"loss": loss})


def test_a_correction_draws_from_the_random_generators_of_its_site(stacked: list[int]) -> None:
    task = images()
    together, alone = end(task, 4, Noisy(**SGD)), end(task, 1, Noisy(**SGD))
    assert difference(together.state.model, alone.state.model) < 1e-6
    assert stacked == [4, 4]


def test_other_sites_of_a_group_continue_if_a_site_fails(stacked: list[int]) -> None:
    task = images()
    failing = task.inside[1]
    results = []
    for batch_sites in (4, 1):
        fleet = LocalFleet(task, rounds=1, min_replies=0.5, batch_sites=batch_sites)
        results += list(federate(Noisy(failing=failing, **SGD), task, fleet, rounds=1))
    together, alone = results
    assert [failure.sites for failure in together.failures] == [(failing,)]
    assert "LookupError: no such organ" in together.failures[0].cause
    assert difference(together.state.model, alone.state.model) < 1e-6
    assert stacked == [4]


def test_a_loss_that_is_not_finite_fails_at_its_site() -> None:
    task = toy.task({"a": ((1.0, 2.0),), "b": ((float("nan"), 1.0),)})
    fleet = LocalFleet(task, rounds=1, min_replies=0.5, batch_sites=2)
    *_, last = federate(FedAvg(**SGD), task, fleet, rounds=1)
    assert [failure.sites for failure in last.failures if failure.call == "call 1"] == [("b",)]
    with pytest.raises(RunError, match="site 'b' failed in round 1: the loss is nan at step 1"):
        end(task, 2, rounds=1)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_moments_of_stacked_networks_are_those_of_single_ones(kind: Any) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(3)]
    inputs = [torch.randn(5, 3) for _ in nets]
    single: list[Any] = [None] * 3
    models = [weights(net) for net in nets]
    for _ in range(2):  # the second time with the moments of the first
        stack = StackedNetworks(nets, [dict((*net.named_parameters(), *net.named_buffers())) for net in nets])
        optimizer = LocalOptimizer(stack.leaves, kind, lr=0.01, momentum=0.9)
        stack.load_optimizer_states(optimizer, single)
        stack.zero_gradients()
        torch.stack([out.square().mean() for out in stack.outputs(inputs)]).sum().backward()
        optimizer.step()
        together = stack.dump_optimizer_states(optimizer)
        alone = [_step(model, x, kind, state) for model, x, state in zip(models, inputs, single, strict=True)]
        for net, found, (model, expected) in zip(nets, together, alone, strict=True):
            assert found.keys() == expected.keys()
            assert all(found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-9) for name in found)
            assert difference(weights(net), model) < 1e-6
        models, single = [model for model, _ in alone], [state for _, state in alone]


def _step(model: Any, x: torch.Tensor, kind: Any, state: Any) -> tuple[Any, Any]:
    from raysim import load

    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    load(net, model)
    fused, _ = fuse_parameters(list(net.parameters()))
    optimizer = LocalOptimizer(fused, kind, lr=0.01, momentum=0.9)
    load_optimizer_state(optimizer, state)
    net(x).square().mean().backward()
    optimizer.step()
    return weights(net), dump_optimizer_state(optimizer)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["task.data.sites=64"], 16),
        (["task.data.sites=64", "task.data.size=[256,256]"], 1),
        (["task.data.sites=64", "task.network.channels=[64,128,256]", "task.network.num_res_units=2"], 1),
        (["task.data.sites=9"], 2),
        (["task.data.sites=7"], 1),
        (["task.data.sites=7", "resources.batch_sites=7"], 7),
        (["task.data.sites=64", "resources.batch_sites=1"], 1),
    ],
)
def test_the_number_of_sites_depends_on_the_task(keys: list[str], expected: int, tmp_path: Any) -> None:
    small = [
        "task.data.cases=1",
        "task.data.val=0",
        "task.data.test=0",
        "task.data.size=[16,16]",
        "task.data.outside=[]",
    ]
    plan = build_plan(resolve(parse_pairs([*small, *keys])), tmp_path)
    assert plan.batch_sites == expected
