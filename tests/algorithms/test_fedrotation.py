"""FedRotation: rotations of images with equal and unequal sides, and a round by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from algorithms.fedrotation import FedRotation, rotate, rotations
from raysim import LocalFleet, federate, weights
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.by_hand import assert_close, first_stage, one_round


def test_images_are_rotated_by_quarter_turns() -> None:
    image = torch.tensor([[[1.0, 2], [3, 4]]])
    found = rotate(image.repeat(4, 1, 1, 1), torch.arange(4))[:, 0].tolist()
    assert found == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


@pytest.mark.parametrize(("size", "count"), [((16, 16), 4), ((16, 24), 2)])
def test_an_image_that_is_not_square_has_two_rotations(size: tuple[int, int], count: int) -> None:
    data = SyntheticData(sites=2, outside=(), cases=4, val=0, test=1, size=size)
    task = Synthetic(data=data, network={"name": "unet", "channels": [2, 4], "strides": [2]}, batch_size=2).build()
    assert rotations(task.shape) == count
    mine = FedRotation(pretrain_rounds=1)
    assert mine.init(task).state["0.head.weight"].shape == (count, 4)
    first = next(federate(mine, task, LocalFleet(task, rounds=2), rounds=2))
    accuracy = [s.value for s in first.scores if s.metric == "turn_accuracy"]
    assert len(accuracy) == 2
    assert all(0 <= value <= 1 for value in accuracy)
    size_of = weights(mine.build_network(task.network(), task)).nbytes
    assert set(first.traffic.up.values()) == set(first.traffic.down.values()) == {size_of}


def test_views_do_not_rotate_or_mirror_by_default() -> None:
    for keys in ([], ["algorithm.views.noise=0.1"], ["algorithm.views={zoom: 0.1}"]):
        mine = resolve(parse_pairs(["algorithm=fedrotation", *keys])).algorithm
        assert (mine.views.turn, mine.views.flip) == (0, 0)


def test_a_round_by_hand() -> None:
    mine = FedRotation(optimizer="sgd", lr=0.1, batch_size=4)

    def loss(net: nn.Module, images: Tensor) -> Tensor:
        quarters = torch.randint(4, (len(images),))
        views = zip(mine.views(images), quarters, strict=True)
        log_probabilities = net(torch.stack([view.rot90(int(k), (1, 2)) for view, k in views])).log_softmax(1)
        return -torch.stack([row[k] for row, k in zip(log_probabilities, quarters, strict=True)]).mean()

    (found,), _ = first_stage(mine, 1)
    assert_close(found.state.state, one_round(mine, loss), 1e-5)
