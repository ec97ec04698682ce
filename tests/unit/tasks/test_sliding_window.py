"""The slabs of a sliding window are bit-identical to the result of MONAI's inferer."""

from __future__ import annotations

import pytest
import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor

from raysim.core.whole_images import SlidingWindow
from raysim.tasks.sliding_window import logits_in_slabs

CPU = torch.device("cpu")


def smoothed(inputs: Tensor) -> Tensor:
    pool = torch.nn.functional.avg_pool3d if inputs.ndim == 5 else torch.nn.functional.avg_pool2d
    smooth = pool(inputs, 3, stride=1, padding=1)
    return torch.cat([smooth, 1 - smooth, smooth.square()], 1)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ((23, 9, 10), (8, 8, 8)),
        ((8, 17, 12), (8, 8, 8)),  # one row of windows
        ((40, 8, 8), (8, 8, 8)),  # batches with windows of several rows
        ((5, 20, 7), (8, 8, 8)),  # padded on two axes
        ((19, 5, 21), (8, 8, 4)),
        ((31, 17), (8, 6)),
    ],
)
@pytest.mark.parametrize(("overlap", "batch", "gaussian"), [(0.5, 3, True), (0.25, 4, False), (0.0, 1, True)])
def test_slabs_are_those_of_monai(
    space: tuple[int, ...], size: tuple[int, ...], overlap: float, batch: int, gaussian: bool
) -> None:
    image = torch.randn(1, *space, generator=torch.Generator().manual_seed(0))
    window = SlidingWindow(overlap=overlap, batch_size=batch, gaussian=gaussian)
    slabs = [slab.clone() for slab in logits_in_slabs(image, smoothed, size, window, fill=-2.0, device=CPU)]
    mode = "gaussian" if gaussian else "constant"
    expected = SlidingWindowInferer(size, batch, overlap, mode=mode, cval=-2.0)(image[None], smoothed)
    assert isinstance(expected, Tensor)
    assert torch.equal(torch.cat(slabs, 1), expected[0])
    if space[0] > 2 * size[0]:
        assert len(slabs) > 1
