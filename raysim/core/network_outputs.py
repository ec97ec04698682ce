"""The logits in the outputs of a network: of full resolution, or of all resolutions (deep supervision)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def full_resolution(outputs: Tensor | Sequence[Tensor], ndim: int) -> Tensor:
    """The full-resolution logits (B, K, *space), with `ndim` axes, of a network with or without deep supervision."""
    if not isinstance(outputs, Tensor):
        return full_resolution(outputs[0], ndim)
    return outputs[:, 0] if outputs.ndim == ndim + 1 else outputs  # DynUNet stacks its heads on axis 1


def all_resolutions(outputs: Tensor | Sequence[Tensor], ndim: int) -> list[Tensor]:
    """The logits of all heads of a network, those of full resolution first. Outputs of other shapes are left out."""
    first = full_resolution(outputs, ndim)
    heads = outputs.unbind(1) if isinstance(outputs, Tensor) and outputs.ndim == ndim + 1 else outputs
    others = () if isinstance(heads, Tensor) else heads[1:]
    return [first, *(each for each in others if isinstance(each, Tensor) and _is_head(each, first))]


def _is_head(output: Tensor, first: Tensor) -> bool:
    return output.ndim == first.ndim and output.shape[:2] == first.shape[:2]
