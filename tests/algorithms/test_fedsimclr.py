"""FedSimCLR: the loss by hand, and the mean of what sites learn."""

from __future__ import annotations

import math

import pytest
import torch

from algorithms.fedsimclr import FedSimCLR
from raysim import LocalFleet, Model, combine, federate, mean, weights
from raysim.seeding import seeded
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.views import drawn
from tests.by_hand import POOLS, alike, at, first_stage, uneven


def test_the_loss_by_hand() -> None:
    # Two images, both views alike: each is 1 from its other view and 0 from the two of the other image.
    z = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    loss = FedSimCLR(temperature=0.5).loss(z)
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 2)))
    # Views of an image are as far as can be, and those of the other one are near.
    crossed = torch.tensor([[1.0, 0], [-1, 0], [-1, 0], [1, 0]])
    e = math.exp
    assert FedSimCLR(temperature=1.0).loss(crossed).item() == pytest.approx(-math.log(e(-1) / (2 * e(-1) + e(1))))


def test_the_loss_is_that_of_each_pair() -> None:
    z, total = torch.nn.functional.normalize(torch.randn(10, 6)), 0.0
    for i in range(10):
        others = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in range(10) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.1) / others)
    assert FedSimCLR().loss(z).item() == pytest.approx(total / 10, rel=1e-5)


def test_a_round_by_hand() -> None:
    mine = FedSimCLR(optimizer="sgd", lr=0.1, batch_size=4, features=8)
    ((found,), _), learned = first_stage(mine, 1), dict[str, Model]()
    with seeded(0, "init"):
        start = mine.init(uneven()).learned
    for name in POOLS:
        with at(name, 0, 1) as site:
            site, pool = mine.stage(site)
            net = mine.opened(site, start)
            sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
            for index in drawn(torch.zeros(len(pool)), 4, math.ceil(len(pool) / 4)):
                images = pool.take(index, torch.device("cpu"))
                z = torch.nn.functional.normalize(net(torch.cat([mine.views(images), mine.views(images)])))
                sgd.zero_grad()
                mine.loss(z).backward()
                sgd.step()
            learned[name] = weights(net)
    theta = combine(list(learned.values()), [count / sum(POOLS.values()) for count in POOLS.values()])
    alike(found.state.learned, theta, 1e-5)


def test_the_server_takes_the_weighted_mean_and_only_the_encoder_and_its_head_travel() -> None:
    data = SyntheticData(sites=2, outside=(), cases=3, val=0, test=1, unlabelled=2, size=(16, 16))
    task = Synthetic(data=data, network={"name": "unet", "channels": [2, 4], "strides": [2]}, batch_size=2).build()
    mine, fleet = FedSimCLR(pretrain_rounds=1), LocalFleet(task, rounds=2)
    with seeded(0, "init"):
        start = mine.init(task).learned
    replies = fleet.map(mine.client, start)
    assert [reply.weight for reply in replies.values()] == [5, 5]  # with a label or without
    first = next(federate(mine, task, LocalFleet(task, rounds=2), rounds=2))
    assert first.state.learned == mean(replies)
    size = weights(mine.build(task.network(), task)).nbytes
    assert set(first.traffic.up.values()) == set(first.traffic.down.values()) == {size}
    assert sum(first.traffic.between.values()) == 0
