"""Losses of torch for the labels of the tasks: class indices (B, 1), or rows of 0 and 1 (B, L)."""

from __future__ import annotations

from torch import Tensor, nn


class CrossEntropyLoss(nn.Module):
    """The cross-entropy of torch, for labels (B, 1); `weight` has a number per class."""

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.measure = nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.measure(logits, labels[:, 0].long())
        return value


class BCEWithLogitsLoss(nn.Module):
    """Binary cross-entropy with logits, the mean over labels; `weight` and `pos_weight` have a number per label."""

    def __init__(self, weight: Tensor | None = None, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.measure = nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.measure(logits, labels.to(logits.dtype))
        return value
