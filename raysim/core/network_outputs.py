"""Logits at full resolution out of what a network returns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def full_resolution(outputs: Tensor | Sequence[Tensor], ndim: int) -> Tensor:
    """The logits (B, K, *space), of `ndim` axes, out of all that a network puts out (deep supervision)."""
    if not isinstance(outputs, Tensor):
        return full_resolution(outputs[0], ndim)
    return outputs[:, 0] if outputs.ndim == ndim + 1 else outputs  # DynUNet stacks its heads on axis 1
