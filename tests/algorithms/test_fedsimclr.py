"""FedSimCLR: the loss by hand, and the mean of the sites' encoders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from algorithms.fedsimclr import FedSimCLR
from raysim import LocalFleet, federate, mean, weights
from raysim.core.seeding import seeded
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.by_hand import assert_close, first_stage, one_round


def test_the_loss_by_hand() -> None:
    # Two images with equal views: similarity 1 to the other view, and 0 to both views of the other image.
    z = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    loss = FedSimCLR(temperature=0.5).loss(z)
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 2)))
    # Views of an image have the smallest similarity, and views of the other image are near.
    crossed = torch.tensor([[1.0, 0], [-1, 0], [-1, 0], [1, 0]])
    e = math.exp
    assert FedSimCLR(temperature=1.0).loss(crossed).item() == pytest.approx(-math.log(e(-1) / (2 * e(-1) + e(1))))


def test_the_loss_is_the_mean_over_pairs() -> None:
    z, total = torch.nn.functional.normalize(torch.randn(10, 6)), 0.0
    for i in range(10):
        others = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in range(10) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.1) / others)
    assert FedSimCLR().loss(z).item() == pytest.approx(total / 10, rel=1e-5)


def test_a_round_by_hand() -> None:
    mine = FedSimCLR(optimizer="sgd", lr=0.1, batch_size=4, features=8)

    def loss(net: nn.Module, images: Tensor) -> Tensor:
        return mine.loss(normalize(net(torch.cat([mine.views(images), mine.views(images)]))))

    (found,), _ = first_stage(mine, 1)
    assert_close(found.state.state, one_round(mine, loss), 1e-5)


def test_the_server_averages_and_only_encoder_and_head_are_sent() -> None:
    data = SyntheticData(sites=2, outside=(), cases=3, val=0, test=1, unlabelled=2, size=(16, 16))
    task = Synthetic(data=data, network={"name": "unet", "channels": [2, 4], "strides": [2]}, batch_size=2).build()
    mine, fleet = FedSimCLR(pretrain_rounds=1), LocalFleet(task, rounds=2)
    with seeded(0, "init"):
        start = mine.init(task).state
    replies = fleet.map(mine.client, start)
    assert [reply.weight for reply in replies.values()] == [5, 5]  # labelled and unlabelled
    first = next(federate(mine, task, LocalFleet(task, rounds=2), rounds=2))
    assert first.state.state == mean(replies)
    size = weights(mine.build_network(task.network(), task)).nbytes
    assert set(first.traffic.up.values()) == set(first.traffic.down.values()) == {size}
    assert sum(first.traffic.between.values()) == 0
