"""FedRotation: turns by hand, of square images and others, and a round by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from algorithms.fedrotation import FedRotation, rotate, rotations
from raysim import LocalFleet, federate, weights
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.by_hand import alike, first_stage, one_round


def test_images_are_turned_by_quarters() -> None:
    image = torch.tensor([[[1.0, 2], [3, 4]]])
    found = rotate(image.repeat(4, 1, 1, 1), torch.arange(4))[:, 0].tolist()
    assert found == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


@pytest.mark.parametrize(("size", "ways"), [((16, 16), 4), ((16, 24), 2)])
def test_what_is_not_square_has_two_ways(size: tuple[int, int], ways: int) -> None:
    data = SyntheticData(sites=2, outside=(), cases=4, val=0, test=1, size=size)
    task = Synthetic(data=data, network={"name": "unet", "channels": [2, 4], "strides": [2]}, batch_size=2).build()
    assert rotations(task.shape) == ways
    mine = FedRotation(pretrain_rounds=1)
    assert mine.init(task).state["0.head.weight"].shape == (ways, 4)
    first = next(federate(mine, task, LocalFleet(task, rounds=2), rounds=2))
    accuracy = [s.value for s in first.scores if s.metric == "turn_accuracy"]
    assert len(accuracy) == 2
    assert all(0 <= value <= 1 for value in accuracy)
    size_of = weights(mine.build_network(task.network(), task)).nbytes
    assert set(first.traffic.up.values()) == set(first.traffic.down.values()) == {size_of}


def test_views_turn_and_mirror_nothing_by_themselves() -> None:
    for words in ([], ["algorithm.views.noise=0.1"], ["algorithm.views={zoom: 0.1}"]):
        mine = resolve(parse_pairs(["algorithm=fedrotation", *words])).algorithm
        assert (mine.views.turn, mine.views.flip) == (0, 0)


def test_a_round_by_hand() -> None:
    mine = FedRotation(optimizer="sgd", lr=0.1, batch_size=4)

    def loss(net: nn.Module, images: Tensor) -> Tensor:
        quarters = torch.randint(4, (len(images),))
        views = zip(mine.views(images), quarters, strict=True)
        log_probabilities = net(torch.stack([view.rot90(int(k), (1, 2)) for view, k in views])).log_softmax(1)
        return -torch.stack([row[k] for row, k in zip(log_probabilities, quarters, strict=True)]).mean()

    (found,), _ = first_stage(mine, 1)
    alike(found.state.state, one_round(mine, loss), 1e-5)
