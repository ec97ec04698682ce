"""A bank of features for contrastive learning: those of other sites, and a queue of the site's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysim.core.contracts import Array


@dataclass(frozen=True)
class Features:
    """Keys, the oldest first: unit vectors (n, d), and the levels (n,) of their slices."""

    vectors: Array
    levels: Array


class Bank:
    """The features of the other sites, which do not change, followed by a ring buffer of the site's own features."""

    def __init__(
        self, size: int, features: int, others: Sequence[Features], own: Features | None, device: torch.device
    ) -> None:
        parts = [*others, *([] if own is None else [own])]
        self.size, self.foreign = size, sum(len(part.levels) for part in others)
        self.filled = 0 if own is None else len(own.levels)
        self.next = self.filled % size
        free = size - self.filled
        # One copy, because arrays in the object store are read-only.
        vectors = np.concatenate([*(part.vectors for part in parts), np.zeros((free, features), np.float32)])
        levels = np.concatenate([*(part.levels for part in parts), np.zeros(free, np.int32)])
        self.vectors = torch.from_numpy(vectors).to(device)
        self.levels = torch.from_numpy(levels.astype(np.int64)).to(device)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` features, drawn without replacement, and their levels; all features if there are fewer."""
        total = self.foreign + self.filled
        if count >= total:
            return self.vectors[:total], self.levels[:total]
        index = torch.randperm(total)[:count].to(self.vectors.device)
        return self.vectors[index], self.levels[index]

    def push(self, vectors: Tensor, levels: Tensor) -> None:
        """Append features to the site's own features. If the bank is full, they replace the oldest."""
        vectors, levels = vectors[-self.size :], levels[-self.size :]
        slots = self.foreign + (self.next + torch.arange(len(levels), device=levels.device)) % self.size
        self.vectors[slots], self.levels[slots] = vectors, levels
        self.filled = min(self.size, self.filled + len(levels))
        self.next = (self.next + len(levels)) % self.size

    def own(self) -> Features:
        """The site's own features, the oldest first."""
        order = torch.arange(self.filled)
        order = self.foreign + (order.roll(-self.next) if self.filled == self.size else order)
        vectors, levels = (part[order.to(part.device)].cpu().numpy() for part in (self.vectors, self.levels))
        return Features(vectors, levels.astype(np.int32))
