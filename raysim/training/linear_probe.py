"""The linear probe of an encoder: how well its features separate the levels of slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysim.core.contracts import Data
from raysim.training.contrastive_views import ImagePool, pool_levels, split_levels

BATCH = 32  # images in a forward pass
RIDGE = 1e-2  # penalty, relative to the number of images; features are standardised


def level_accuracy(encoder: nn.Module, data: Data, groups: int, device: torch.device) -> float | None:
    """The percentage of validation images whose level a linear probe predicts; None without validation images.

    The probe is a ridge regression of the one-hot levels on the encoder's features, averaged over space. It is fitted
    on the images for pre-training. `encoder` maps images (B, C, H, W) to (B, F, *coarse), in evaluation mode.
    """
    pool, levels, expected = ImagePool.of(data), pool_levels(data, groups), split_levels(data.val, groups)
    if not len(expected) or not len(pool):
        return None
    fitted = _features(encoder, pool, device)
    mean, deviation = fitted.mean(0), fitted.std(0, correction=0).clamp(min=1e-6)
    classes, targets = levels.unique(return_inverse=True)
    weights = _ridge((fitted - mean) / deviation, nn.functional.one_hot(targets).double())
    scores = _with_constant((_features(encoder, ImagePool.of_split(data.val), device) - mean) / deviation) @ weights
    correct: float = (classes[scores.argmax(1)] == expected).double().mean().item()
    return 100 * correct


@torch.no_grad()
def _features(encoder: nn.Module, pool: ImagePool, device: torch.device) -> Tensor:
    """The features (N, F) of all images, in float64 on the CPU."""
    parts = [encoder(pool.take(index, device)).flatten(2).mean(2) for index in torch.arange(len(pool)).split(BATCH)]
    return torch.cat(parts).cpu().double()


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """The weights (F + 1, K) of a ridge regression; the constant is not penalised."""
    x = _with_constant(x)
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 0
    weights: Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    return weights


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
