"""The outputs of a predictor: shape, dtype and finiteness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysim.core.contracts import Predictor, Split
from raysim.core.errors import RunError
from raysim.tasks.prediction import predict_batches

CPU = torch.device("cpu")
IMAGES = Split(np.zeros((3, 1, 4, 5), np.float32), np.zeros((3, 1, 4, 5), np.uint8), np.arange(3), np.ones((3, 2)))


def logits(inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs, inputs + 1], 1)


def predict(predictor: Predictor) -> list[torch.Tensor]:
    return list(predict_batches(predictor, IMAGES, 2, 2, CPU))


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (
            lambda x: logits(x).argmax(1),
            r"must return logits \(B, K, \*space\) = \(2, 2, 4, 5\), got the shape \(2, 4, 5\); .* without argmax",
        ),
        (
            lambda x: logits(x).argmax(1, keepdim=True),
            r"got the shape \(2, 1, 4, 5\); .* without argmax",
        ),
        (lambda x: logits(x)[..., :3], r"got the shape \(2, 2, 4, 3\); return the logits for every class"),
        (lambda x: logits(x).long(), r"got torch.int64; return the logits without argmax"),
        (lambda x: logits(x).numpy(), r"got a ndarray; return the output of the network, a tensor"),
        (lambda x: logits(x) / x, r"got 80 of 80 values that are not finite; lower the learning rate"),
    ],
)
def test_a_wrong_output_is_refused(predictor: Predictor, message: str) -> None:
    with pytest.raises(RunError, match=message):
        predict(predictor)


def test_the_heads_of_deep_supervision_give_the_first() -> None:
    assert [len(each) for each in predict(lambda x: [logits(x), logits(x[..., :2])])] == [2, 1]
    assert torch.equal(
        predict(lambda x: torch.stack([logits(x), 9 * logits(x)], 1))[0], logits(torch.zeros(2, 1, 4, 5))
    )


class Network(nn.Module):
    """Its logits are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return logits(inputs)


def test_only_a_network_in_evaluation_mode_predicts_small_images_in_larger_batches() -> None:
    network = Network().eval()
    assert [len(each) for each in predict(network)] == [3]
    assert [len(each) for each in predict(network.forward)] == [2, 1]
    network.norm.train()  # uses the statistics of the batch
    assert [len(each) for each in predict(network)] == [2, 1]


def test_a_predictor_that_writes_to_its_inputs_does_not_change_the_data() -> None:
    predict(lambda x: logits(x.sub_(7)))
    assert IMAGES.inputs.max() == IMAGES.inputs.min() == 0
