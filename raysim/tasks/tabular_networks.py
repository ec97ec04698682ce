"""Networks for tabular data: logistic regression and a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn


def logistic(in_features: int, out_features: int) -> nn.Module:
    """Logistic regression: a linear layer from the features to the logits of the classes."""
    return nn.Linear(in_features, out_features)


def mlp(
    in_features: int,
    out_features: int,
    hidden: Sequence[int] = (32, 16),
    norm: Literal["none", "batch"] = "none",
    dropout: float = 0.0,
) -> nn.Module:
    """Hidden layers of these sizes, each with optional BatchNorm, ReLU and dropout; then a linear layer to the logits.

    Raises ValueError for an unknown norm.
    """
    if norm not in ("none", "batch"):
        raise ValueError(f"norm is {norm!r}, expected none or batch")
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_features, width))
        layers += [nn.BatchNorm1d(width)] if norm == "batch" else []
        layers += [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))
