"""The loss of networks with several resolutions, by hand and against MONAI."""

from __future__ import annotations

import pytest
import torch
from monai.losses.dice import DiceCELoss
from monai.losses.ds_loss import DeepSupervisionLoss
from torch import Tensor

from raysim.core.network_outputs import all_resolutions
from raysim.data.mask_values import IGNORED
from raysim.tasks.losses import OutputLoss, make_segmentation_loss

LABELS = (torch.arange(128).reshape(2, 1, 8, 8) % 3 == 0).to(torch.uint8)


def heads(*sides: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, side, side, generator=generator) for side in sides]


def test_losses_have_the_weights_of_nnunet() -> None:
    def mean(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean() + labels.float().mean()

    outputs = [torch.full((1, 2, side, side), value) for side, value in [(4, 1.0), (2, 10.0), (1, 100.0)]]
    found = OutputLoss(mean)(outputs, torch.ones(1, 1, 4, 4, dtype=torch.uint8))  # type: ignore[arg-type]
    assert found.item() == pytest.approx((1 + 10 / 2 + 100 / 4) / 1.75 + 1)


def test_the_loss_is_that_of_monai_with_these_weights() -> None:
    outputs = heads(8, 4, 2)
    expected = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True), weights=[4 / 7, 2 / 7, 1 / 7])(
        outputs, LABELS.float()
    )
    found = make_segmentation_loss({"name": "dice_ce"})(outputs, LABELS)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_stacked_heads_are_those_of_a_list() -> None:
    outputs, loss = heads(8, 8), make_segmentation_loss({"name": "dice_ce"})
    assert torch.equal(loss(torch.stack(outputs, 1), LABELS), loss(outputs, LABELS))  # type: ignore[arg-type]


def test_one_head_has_the_plain_loss() -> None:
    (output,), loss = heads(8), make_segmentation_loss({"name": "dice"})
    assert torch.equal(loss([output], LABELS), loss(output, LABELS))  # type: ignore[arg-type]


def test_outputs_that_are_no_logits_are_left_out() -> None:
    output, lower = heads(8, 4)
    features, scalar = torch.zeros(2, 16, 4, 4), torch.zeros(())
    assert all_resolutions([output, lower, features, scalar, [lower]], 4) == [output, lower]  # type: ignore[list-item]


def test_ignored_voxels_are_left_out_of_all_resolutions() -> None:
    labels = LABELS.clone()
    labels[:, :, :, 4:] = IGNORED
    loss = make_segmentation_loss({"name": "dice_ce"}, ignored=True)
    outputs = heads(8, 4)
    changed = [head.clone() for head in outputs]
    for head in changed:
        head[..., head.shape[-1] // 2 :] += 7
    assert torch.allclose(loss(outputs, labels), loss(changed, labels))  # type: ignore[arg-type]
