"""Local training: steps computed by hand, and results bit-identical to a plain training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raysim import LocalTraining, Model, weights
from raysim.core.contracts import Batch, Sampling
from raysim.core.errors import RunError
from raysim.core.seeding import seeded
from raysim.training.batching import batches, epoch_order
from raysim.training.local_training import lr_factor
from raysim.training.optimizers import LocalOptimizer, dump_optimizer_state, fuse_parameters, load_optimizer_state
from tests.support.toy import A, Line, Points, Scaled, line, site, split

CPU = torch.device("cpu")
FOUR: Points = ((1, 0), (2, 1), (3, 1), (4, 3))
FIVE: Points = (*FOUR, (5, 2))


def sgd(**fields: Any) -> LocalTraining:
    plain: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
    return LocalTraining(**plain | fields)


def trained(training: LocalTraining, points: Points = A, **place: Any) -> tuple[float, float]:
    """w and b after one round from zero."""
    here = site(points, **place)
    net = here.load()
    training.fit(net, here)
    return line(weights(net))


def test_one_step_of_sgd() -> None:
    # At (1, 2) from zero: r = -2, so w = b = 0 + 0.1 * 2; the loss is 2^2 / 2.
    here = site(A)
    net = here.load()
    assert sgd().fit(net, here) == pytest.approx(2.0)
    assert line(weights(net)) == pytest.approx((0.2, 0.2))


def test_epochs_are_passes_over_the_data() -> None:
    # Two steps at (1, 2): r = -2, then 0.4 - 2 = -1.6: 0.2 + 0.16. The loss is (2 + 1.28) / 2.
    here = site(A)
    net = here.load()
    assert sgd(epochs=2).fit(net, here) == pytest.approx(1.64)
    assert line(weights(net)) == pytest.approx((0.36, 0.36))


def test_steps_replace_epochs() -> None:
    assert trained(sgd(steps=2, epochs=7)) == pytest.approx((0.36, 0.36))


def test_momentum() -> None:
    # The second step's velocity: 0.5 * 2 + 1.6 = 2.6, so 0.2 + 0.26.
    assert trained(sgd(steps=2, momentum=0.5)) == pytest.approx((0.46, 0.46))


def test_weight_decay_pulls_to_zero() -> None:
    # Weight decay adds 0.5 * 0.2 to the second gradient: 1.6 - 0.1 = 1.5, so 0.2 + 0.15.
    assert trained(sgd(steps=2, weight_decay=0.5)) == pytest.approx((0.35, 0.35))


def test_clip_bounds_the_norm_of_the_whole_gradient() -> None:
    # (-2, -2) has norm 2 sqrt(2); clipped to norm 1 it is (-1, -1) / sqrt(2).
    assert trained(sgd(clip=1.0)) == pytest.approx((0.1 / math.sqrt(2),) * 2, rel=1e-4)
    assert trained(sgd(clip=3.0)) == pytest.approx((0.2, 0.2))


def test_a_correction_comes_before_clipping() -> None:
    def tenfold(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(10)

    here = site(A)
    net = here.load()
    sgd(clip=1.0).fit(net, here, correct=tenfold)
    assert line(weights(net)) == pytest.approx((0.1 / math.sqrt(2),) * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        # (1 + cos(pi r / 4)) / 2 with cos 45 degrees = 0.70711
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        # 0.75^0.9, 0.5^0.9, 0.25^0.9
        ("poly", [1, 0.771897, 0.535887, 0.287175]),
    ],
)
def test_schedules_over_four_rounds(schedule: str, expected: list[float]) -> None:
    assert [lr_factor(schedule, index, 4) for index in range(4)] == pytest.approx(expected, abs=1e-5)


def test_the_schedule_uses_the_configured_rounds() -> None:
    # Round 2 of 4: half the learning rate, half the step.
    assert trained(sgd(schedule="linear"), round=2, rounds=4) == pytest.approx((0.1, 0.1))


def test_lr_at_and_count_steps() -> None:
    assert sgd(schedule="linear").lr_at(site(round=3, rounds=4)) == pytest.approx(0.025)
    # Five examples in batches of two take three steps per epoch; a split smaller than a batch takes one.
    assert sgd(epochs=2).count_steps(split(FIVE), 2) == 6
    assert sgd(epochs=2).count_steps(split(FIVE), 2, epochs=1) == 3
    assert sgd(steps=7).count_steps(split(FIVE), 2) == 7
    assert sgd(steps=7).count_steps(split(FIVE), 2, epochs=1) == 3
    assert sgd().count_steps(split(A), 8) == 1


def test_epochs_given_to_fit_override_the_fields() -> None:
    here = site(A)
    net = here.load()
    sgd(steps=5, epochs=3).fit(net, here, epochs=2)
    assert line(weights(net)) == pytest.approx((0.36, 0.36))


def test_optimizer_state_is_loaded_and_returned() -> None:
    # Two calls of one step with momentum 0.5 are the two steps above: 0.2 + 0.26.
    here, optimizer_state = site(A), {}
    net = here.load()
    for _ in range(2):
        sgd(momentum=0.5).fit(net, here, optimizer_state=optimizer_state)
    assert line(weights(net)) == pytest.approx((0.46, 0.46))
    assert [array.tolist() for array in optimizer_state.values()] == [pytest.approx([-2.6, -2.6])]


def test_frozen_parameters_stay() -> None:
    here = site(A)
    net = here.load()
    net.bias.requires_grad_(False)
    sgd().fit(net, here)
    assert line(weights(net)) == pytest.approx((0.2, 0.0))


def test_another_split_may_be_given() -> None:
    # At (2, 2): r = -2, so w = 0.1 * 4 and b = 0.1 * 2.
    here = site(A)
    net = here.load()
    sgd().fit(net, here, split=split(((2, 2),)))
    assert line(weights(net)) == pytest.approx((0.4, 0.2))


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_identical_to_a_plain_loop(name: str) -> None:
    here = site(FIVE, network=Scaled, batch_size=3)
    net, plain = here.load(), here.load()
    training = LocalTraining(optimizer=name, lr=0.05, weight_decay=0.01, epochs=3, clip=1.0)  # type: ignore[arg-type]
    with seeded(7):
        training.fit(net, here)

    inputs, labels = torch.tensor([[1.0], [2], [3], [4], [5]]), torch.tensor([[0], [1], [1], [3], [2]])
    optimizer = OPTIMIZERS[name](plain.parameters())
    with seeded(7):
        torch.randint(2**31, ())
        for _ in range(3):
            for index in torch.randperm(5).split(3):
                optimizer.zero_grad()
                (0.5 * (plain(inputs[index]) - labels[index]).square().mean()).backward()
                nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
                optimizer.step()
    assert weights(net) == weights(plain)
    assert line(weights(net)) != (0, 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_those_of_the_optimiser_of_torch(name: Any) -> None:
    parameters = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0], dtype=torch.float64))]
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    steps: list[Any] = [LocalOptimizer(parameters, name, 0.05, 0.9, 0.01), OPTIMIZERS[name](copies)]
    moments = []
    for optimizer, trained in zip(steps, (parameters, copies), strict=True):
        for number in range(3):
            for p in trained:
                p.grad = p.detach() * (number + 0.5)
            optimizer.step()
        moments.append(dump_optimizer_state(optimizer))
    assert moments[0].keys() == moments[1].keys()
    assert all(np.array_equal(moments[0][key], moments[1][key]) for key in moments[0])

    again: list[Any] = [LocalOptimizer(parameters, name, 0.05, 0.9, 0.01), OPTIMIZERS[name](copies)]
    for optimizer in again:
        load_optimizer_state(optimizer, moments[0])
        optimizer.step()
    assert all(torch.equal(p, copy) for p, copy in zip(parameters, copies, strict=True))


def seen(given: Iterator[Batch]) -> list[list[int]]:
    return [inputs.flatten().int().tolist() for inputs, _ in given]


def test_an_epoch_has_each_example_once_and_a_smaller_last_batch() -> None:
    with seeded(1):
        found = seen(batches(split(FOUR), 3, 4, CPU))
    assert [len(batch) for batch in found] == [3, 1, 3, 1]
    assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == [1, 2, 3, 4]


def test_batches_may_end_within_an_epoch() -> None:
    assert [len(batch) for batch in seen(batches(split(FOUR), 1, 6, CPU))] == [1] * 6


def test_order_follows_the_seed() -> None:
    many = split(tuple((float(x), 0) for x in range(50)))

    def order(seed: int) -> list[list[int]]:
        with seeded(seed):
            return seen(batches(many, 50, 1, CPU))

    assert order(1) == order(1)
    assert order(1) != order(2)


def class_counts(sampling: Sampling, labels: list[int], epochs: int = 1) -> list[float]:
    """The mean number of examples of each class in an epoch."""
    given = split(tuple((float(label), label) for label in labels))
    with seeded(3):
        drawn = [
            x for epoch in seen(batches(given, 7, epochs * -(-len(labels) // 7), CPU, None, sampling)) for x in epoch
        ]
    assert len(drawn) == epochs * len(labels)
    return [drawn.count(label) / epochs for label in range(max(labels) + 1)]


def test_sampling_by_class() -> None:
    # 16, 4 and 1 examples of 21: uniform keeps them, balanced draws 7 of each, sqrt 21 (4, 2, 1) / 7 = 12, 6 and 3.
    # A class without examples is not drawn.
    labels = [0] * 16 + [1] * 4 + [3]
    assert class_counts("uniform", labels) == [16, 4, 0, 1]
    assert class_counts("balanced", labels, 400) == pytest.approx([7, 7, 0, 7], abs=0.3)
    assert class_counts("sqrt", labels, 400) == pytest.approx([12, 6, 0, 3], abs=0.3)
    assert class_counts("balanced", [0, 2, 2, 2], 400) == pytest.approx([2, 0, 2], abs=0.2)


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_sampling_by_class_follows_the_seed(sampling: Sampling) -> None:
    labels = torch.arange(50)[:, None] % 7

    def order(seed: int) -> list[int]:
        with seeded(seed):
            return epoch_order(labels, sampling).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_augmentation_depends_on_the_seed_and_does_not_change_the_data() -> None:
    def jittered(x: torch.Tensor, y: torch.Tensor, chance: np.random.RandomState) -> Batch:
        return x.add_(chance.uniform()), y

    given = split(FOUR)

    def once(seed: int) -> list[float]:
        with seeded(seed):
            return [value for x, _ in batches(given, 4, 2, CPU, jittered) for value in sorted(x.flatten().tolist())]

    assert once(1) == once(1)
    assert once(1) != once(2)
    assert once(1)[:4] != once(1)[4:]
    assert given.inputs.flatten().tolist() == [1, 2, 3, 4]


def test_a_split_without_labelled_examples_is_refused() -> None:
    with pytest.raises(RunError, match="no labelled examples, so the site cannot train; add rows"):
        trained(sgd(), ())


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    # Each step multiplies the residual by 1 - 2e20: 2, 4e20 (8e40 as a loss is beyond float32), ...
    with pytest.raises(RunError, match=r"the loss is inf at step 2 of 5; lower the learning rate"):
        trained(sgd(lr=1e20, steps=5))


def test_weights_that_are_not_finite_raise_an_error() -> None:
    with pytest.raises(RunError, match="the weights are not finite at step 1 of 1"):
        trained(sgd(lr=3e38, steps=1))


def test_mixed_precision_trains_in_bfloat16() -> None:
    # In bfloat16, 0.4 has 8 bits of mantissa; the weights stay float32.
    w, _ = trained(sgd(amp=True, steps=2))
    assert w == pytest.approx(0.36, abs=2e-3)
    assert w != trained(sgd(steps=2))[0]


# Batch normalisation of x = 1, 3: mean 2, unbiased variance 2; the running statistics move by a tenth.
PAIR: Points = ((1, 0), (3, 1))


@dataclass(frozen=True)
class MethodState:
    """A client state of a method."""

    buffers: Model


MEAN, VARIANCE = 0.1 * 2, 0.9 * 1 + 0.1 * 2


def after(policy: str, client_state: Any = None) -> tuple[Any, Any]:
    """Update and client state of a site with PAIR after one step. The global model has the statistics 5 and 7."""
    here = site(PAIR, network=Scaled, client_state=client_state)
    training = sgd(buffers=policy)
    start = here.load()
    start[0].running_mean.fill_(5)  # type: ignore[index]
    start[0].running_var.fill_(7)  # type: ignore[index]
    net = training.load_global(here, training.make_update(start)[0])
    training.fit(net, here)
    return training.make_update(net)


def test_averaged_buffers_are_sent() -> None:
    update, buffers = after("average")
    assert repr(buffers) == "UNCHANGED"
    assert update["0.running_mean"].item() == pytest.approx(0.9 * 5 + 0.1 * 2)
    assert update["0.running_var"].item() == pytest.approx(0.9 * 7 + 0.1 * 2)
    assert update["0.num_batches_tracked"] == 1


def test_local_buffers_stay_at_the_site() -> None:
    update, buffers = after("local")
    assert len(update.buffers) == 0
    assert buffers["0.running_mean"].item() == pytest.approx(MEAN)
    _, again = after("local", client_state=buffers)
    assert again["0.running_mean"].item() == pytest.approx(0.9 * MEAN + 0.1 * 2)
    assert again["0.num_batches_tracked"] == 2


def test_reset_buffers_are_reset_in_every_round() -> None:
    update, buffers = after("reset")
    assert repr(buffers) == "UNCHANGED"
    assert update["0.running_mean"].item() == pytest.approx(MEAN)
    assert update["0.running_var"].item() == pytest.approx(VARIANCE)
    assert update["0.num_batches_tracked"] == 1


def test_local_buffers_are_used_at_the_site_and_batch_statistics_elsewhere() -> None:
    training = sgd(buffers="local")
    update, buffers = after("local")
    x = torch.tensor([[1.0], [3.0]])
    same_site = site(PAIR, network=Scaled, client_state=buffers)
    net = training.predict_module(same_site, update)
    expected = (x - MEAN) / math.sqrt(VARIANCE + 1e-5)
    torch.testing.assert_close(net[0](x), expected)  # type: ignore[index]
    elsewhere = training.predict_module(site(PAIR, network=Scaled), update)
    torch.testing.assert_close(elsewhere[0](x), torch.tensor([[-1.0], [1.0]]), atol=1e-4, rtol=0)  # type: ignore[index]


def test_the_buffers_of_any_client_state_are_used() -> None:
    """Only the buffers of a model, or the attribute `buffers` of a dataclass, are added to the global model."""
    update, buffers = after("local")
    whole = weights(site(PAIR, network=Scaled).load()) | buffers
    for client_state in (whole, MethodState(buffers=buffers)):
        here = site(PAIR, network=Scaled, client_state=client_state)  # type: ignore[arg-type]  # any class with buffers
        found = weights(sgd(buffers="local").load_global(here, update))
        assert found == update | buffers


def test_load_global_returns_a_copy() -> None:
    here = site(A)
    model = weights(Line())
    first = sgd().load_global(here, model)
    sgd().fit(first, here)
    assert weights(sgd().load_global(here, model)) == model
    assert weights(here.load()) == model


def test_joined_parameters_are_views_of_one() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 1).double()).to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in net.parameters()]
    joined, gradients = fuse_parameters(list(net.parameters()))
    assert [(len(p), p.dtype) for p in joined] == [(57, torch.float32), (3, torch.float64)]  # 3*2*9 + 3, 2 + 1
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    net[0](torch.ones(1, 2, 3, 3)).sum().backward()
    assert gradients[0].sum() == 57  # with an input of ones, the gradient of every weight and bias is one
    with torch.no_grad():
        joined[0].zero_()
    assert not net[0].weight.any()
