"""The logits of a predictor for the examples of a split, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysim.core.arrays import shared_tensor
from raysim.core.contracts import Array, Predictor, Split
from raysim.core.errors import RunError
from raysim.core.network_outputs import full_resolution
from raysim.core.whole_images import WholeImages
from raysim.tasks.sliding_window import logits_in_slabs

BATCH_PIXELS = 1 << 16  # pixels in a batch of small images; larger batches are hardly faster


@torch.no_grad()  # not inference_mode: a predictor that adapts at test time enables gradients
def predict_batches(
    predict: Predictor, split: Split, batch_size: int, classes: int, device: torch.device
) -> Iterator[Tensor]:
    """The logits (B, K, *space), or (B, K) for labels (B, 1), of each batch of a labelled split, in order.

    Small images are predicted in batches of up to BATCH_PIXELS pixels if a network predicts each independently.
    Raises RunError for an output of another shape, and for values that are not finite floats.
    """
    assert split.labels is not None
    if isinstance(predict, nn.Module) and not any(layer.training for layer in predict.modules()):
        batch_size = max(batch_size, BATCH_PIXELS // prod(split.inputs.shape[2:]))
    for start in range(0, len(split), batch_size):
        # A copy, because the predictor may write to it.
        inputs = torch.from_numpy(np.array(split.inputs[start : start + batch_size]))
        expected = (len(inputs), classes, *split.labels.shape[2:])
        outputs = predict(inputs.to(device))
        yield _checked_logits(outputs, expected)


@dataclass(frozen=True)
class CaseImages:
    """A case with its n examples, or its n whole images if the examples are patches.

    inputs: n images (C, *space). labels, predicted: class indices (n, *space). spacing: (D,) as in Split.
    """

    inputs: Array | Sequence[Array]
    labels: Array
    predicted: Array
    spacing: Array


def predict_cases(
    predict: Predictor, split: Split, batch_size: int, classes: int, device: torch.device
) -> Iterator[tuple[int, CaseImages]]:
    """Each case of a split that has masks, by its number, with its predicted classes. Raises as `predict_batches`."""
    assert split.labels is not None
    if split.images is None:
        batches = predict_batches(predict, split, batch_size, classes, device)
        predicted = np.concatenate([_largest(logits).cpu().numpy() for logits in batches])
        for case in np.unique(split.cases):
            rows = np.flatnonzero(split.cases == case)
            images = CaseImages(split.inputs[rows], split.labels[rows, 0], predicted[rows], split.spacing[rows[0]])
            yield int(case), images
        return
    whole, labels, sources = split.images, split.images.labels, split.sources
    assert labels is not None
    assert sources is not None
    for case, numbers in whole.of_cases(sources):
        found = [predict_classes(predict, whole, number, classes, device) for number in numbers]
        of_case = np.stack([labels[number][0] for number in numbers])
        inputs = [whole.images[number] for number in numbers]
        yield case, CaseImages(inputs, of_case, torch.stack(found).numpy(), whole.spacing[numbers[0]])


def _largest(logits: Tensor) -> Tensor:
    """The class (B, *space) with the largest of the logits (B, K, *space), the first one if several are equal."""
    return logits.max(1).indices.byte()  # as argmax, which takes ten times as long on a CPU


@torch.no_grad()
def predict_classes(predict: Predictor, images: WholeImages, number: int, classes: int, device: torch.device) -> Tensor:
    """The class (*space) of each voxel of a whole image, that of the largest logit. Raises as `predict_batches`."""
    return torch.cat([_largest(slab[None])[0] for slab in predict_slabs(predict, images, number, classes, device)])


@torch.no_grad()
def predict_slabs(
    predict: Predictor, images: WholeImages, number: int, classes: int, device: torch.device
) -> Iterator[Tensor]:
    """The logits of a whole image, as from `logits_in_slabs`. Raises RunError as `predict_batches`."""
    options, window = images.options, images.options.window
    axes = [
        tuple(2 + axis for axis in flipped) for n in range(4) for flipped in combinations(sorted(set(window.mirror)), n)
    ]

    def predict_windows(inputs: Tensor) -> Tensor:
        expected = (len(inputs), classes, *options.size)
        total = torch.zeros(expected, device=device)
        for flipped in axes:
            # A copy, because the predictor may write to it.
            outputs = predict(inputs.flip(flipped) if flipped else inputs.clone())
            total += _checked_logits(outputs, expected).float().flip(flipped)
        return total / len(axes)

    image, fill = shared_tensor(images.images[number]), float(images.lows[number])
    yield from logits_in_slabs(image, predict_windows, options.size, window, fill=fill, device=device)


def _checked_logits(outputs: Any, expected: tuple[int, ...]) -> Tensor:
    first = outputs
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if not isinstance(first, Tensor):
        raise _output_error(f"a {type(first).__name__}", expected, "return the output of the network, a tensor")
    logits = full_resolution(outputs, len(expected))
    if tuple(logits.shape) != expected:
        without_classes = (expected[0], *expected[2:])
        of_classes = tuple(logits.shape) in (without_classes, (expected[0], 1, *expected[2:]))
        cure = "without argmax" if of_classes else "for every class"
        raise _output_error(f"the shape {_format(logits.shape)}", expected, f"return the logits {cure}")
    if not logits.is_floating_point():
        raise _output_error(str(logits.dtype), expected, "return the logits without argmax")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).sum())
        raise _output_error(
            f"{bad} of {logits.numel()} values that are not finite",
            expected,
            "lower the learning rate (algorithm.lr), clip the gradient (algorithm.clip=1), or check the site's data",
        )
    return logits


def _output_error(found: str, expected: tuple[int, ...], cure: str) -> RunError:
    symbols = "(B, K, *space)" if len(expected) > 2 else "(B, K)"
    return RunError(f"the predictor must return logits {symbols} = {_format(expected)}, got {found}; {cure}")


def _format(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
