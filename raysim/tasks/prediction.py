"""The logits of a predictor for the examples of a split, checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysim.core.contracts import Predictor, Split
from raysim.core.errors import RunError
from raysim.core.network_outputs import full_resolution


@torch.no_grad()  # not inference_mode: a predictor that adapts at test time enables gradients
def predict_batches(
    predict: Predictor, split: Split, batch_size: int, classes: int, device: torch.device
) -> Iterator[Tensor]:
    """The logits (B, K, *space), or (B, K) for labels (B, 1), of each batch of a labelled split, in order.

    Raises RunError for an output of another shape, and for values that are not finite floats.
    """
    assert split.labels is not None
    for start in range(0, len(split), batch_size):
        # A copy, because the predictor may write to it.
        inputs = torch.from_numpy(np.array(split.inputs[start : start + batch_size]))
        expected = (len(inputs), classes, *split.labels.shape[2:])
        outputs = predict(inputs.to(device))
        yield _checked_logits(outputs, expected)


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
