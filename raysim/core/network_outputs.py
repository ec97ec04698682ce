"""The full-resolution logits in the outputs of a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def full_resolution(outputs: Tensor | Sequence[Tensor], ndim: int) -> Tensor:
    """The full-resolution logits (B, K, *space), with `ndim` axes, of a network with or without deep supervision."""
    if not isinstance(outputs, Tensor):
        return full_resolution(outputs[0], ndim)
    return outputs[:, 0] if outputs.ndim == ndim + 1 else outputs  # DynUNet stacks its heads on axis 1
