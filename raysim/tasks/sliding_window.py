"""The logits of a whole image from its windows, as those of MONAI's SlidingWindowInferer, in slabs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from raysim.core.whole_images import SlidingWindow

Space = tuple[slice, ...]
SIGMA_SCALE = 0.125  # deviation of the Gaussian, relative to the window, as in MONAI and nnU-Net


def logits_in_slabs(
    image: Tensor,
    predict: Callable[[Tensor], Tensor],
    size: Sequence[int],
    window: SlidingWindow,
    *,
    fill: float,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yields the logits (K, n, *rest) of an image (C, *space) on the CPU, in parts along its first spatial axis.

    A part is the weighted mean of the logits of its windows, by `predict` from (B, C, *size) to (B, K, *size) on
    `device`, and is only valid until the next one. Joined, the parts are equal to the result of MONAI's inferer, which
    holds the logits of the whole image: here rows that no further window contains are removed. An image that is smaller
    than a window is padded with `fill`.
    """
    padded, inside = _pad(image, size, fill)
    windows = _windows(padded.shape[1:], size, window.overlap)
    batches = [windows[start : start + window.batch_size] for start in range(0, len(windows), window.batch_size)]
    rows = max(batch[-1][0].stop - batch[0][0].start for batch in batches)
    weight = _weights(size, window, device)
    total, counts, done = None, torch.zeros(1, rows, *padded.shape[2:]), 0
    for batch in batches:
        inputs = torch.stack([padded[(slice(None), *at)] for at in batch]).to(device)
        outputs = (predict(inputs) * weight).cpu()
        total = torch.zeros(outputs.shape[1], rows, *padded.shape[2:]) if total is None else total
        if complete := batch[0][0].start - done:
            yield _mean(total, counts, complete)[(slice(None), slice(None), *inside[1:])]
            _shift(total, complete)
            _shift(counts, complete)
            done += complete
        for at, output in zip(batch, outputs, strict=True):
            here = slice(at[0].start - done, at[0].stop - done)
            total[(slice(None), here, *at[1:])] += output
            counts[(slice(None), here, *at[1:])] += weight.cpu()
    assert total is not None
    yield _mean(total, counts, padded.shape[1] - done)[(slice(None), *inside)]


def _windows(space: Sequence[int], size: Sequence[int], overlap: float) -> list[Space]:
    """The windows in MONAI's order: the position on the first axis never decreases."""
    from monai.data.utils import dense_patch_slices  # MONAI takes longer to import than torch

    steps = [n if n == length else max(1, int(n * (1 - overlap))) for n, length in zip(size, space, strict=True)]
    return dense_patch_slices(space, size, steps)


def _weights(size: Sequence[int], window: SlidingWindow, device: torch.device) -> Tensor:
    """The weight (1, *size) of each voxel of a window."""
    from monai.data.utils import compute_importance_map

    mode = "gaussian" if window.gaussian else "constant"
    return compute_importance_map(tuple(size), mode=mode, sigma_scale=SIGMA_SCALE, device=device)[None]


def _pad(image: Tensor, size: Sequence[int], fill: float) -> tuple[Tensor, Space]:
    """The image, at least as large as a window, and the position of its voxels."""
    space = image.shape[1:]
    missing = [max(n - length, 0) for n, length in zip(size, space, strict=True)]
    inside = tuple(slice(n // 2, n // 2 + length) for n, length in zip(missing, space, strict=True))
    if not any(missing):
        return image, (slice(None), *inside[1:])
    pads = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    return torch.nn.functional.pad(image, pads, value=fill), inside


def _mean(total: Tensor, counts: Tensor, rows: int) -> Tensor:
    return total[:, :rows].div_(counts[:, :rows])


def _shift(buffer: Tensor, rows: int) -> None:
    """Move the rows of a buffer (K, n, *rest) to its start, and set the free ones to 0."""
    for row in range(buffer.shape[1] - rows):  # one at a time, because a copy of all takes memory
        buffer[:, row] = buffer[:, row + rows]
    buffer[:, max(buffer.shape[1] - rows, 0) :] = 0
