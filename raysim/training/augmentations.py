"""Images without labels to learn from: which there are, what they show, how they are drawn and varied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from raysim.core.contracts import Array, Data, Split, Task
from raysim.core.errors import ConfigError


def levels_along(slices: int, groups: int) -> Array:
    """The level of each of `slices` slices of a volume, 1 to `groups`, from one end of it to the other.

    Each has q = slices / groups of them, rounded half up, and at least one; the last takes what is left. So of 5
    slices the levels are 1, 2, 3, 4, 4; of 6 there is none of the fourth; of 10 they have 3, 3, 3 and 1.
    """
    each = max(1, math.floor(slices / groups + 0.5))
    return np.minimum(np.arange(slices) // each, groups - 1).astype(np.int32) + 1


def levels(split: Split, groups: int) -> Array:
    """The level of each example: as the table has it, or by the place of the slice in its volume."""
    if split.levels is not None:
        return split.levels
    counts = np.unique(split.cases, return_counts=True)[1]  # cases are numbered in order
    return np.concatenate([np.zeros(0, np.int32), *(levels_along(int(count), groups) for count in counts)])


def check_images(task: Task) -> None:
    """Raises ConfigError if the examples are no pictures."""
    if len(task.shape) == 4:
        raise ConfigError("pre-training takes slices, and these are whole volumes; set task.data.slices=true")
    if len(task.shape) != 3:
        raise ConfigError("pre-training takes images, and these are rows of a table")


def check_levels(task: Task) -> None:
    """Raises ConfigError if nothing says which of the examples show the same part of the body."""
    check_images(task)
    opened = (task.open(site) for site in task.inside)
    if not any(_has_levels(split) for data in opened for split in (data.train, data.unlabelled)):
        raise ConfigError(
            "these pictures are no slices of volumes, so nothing says which of them show the same part of the body: "
            "take volumes and task.data.slices=true, or give the table a column `partition`, or pre-train with "
            "algorithm=fedsimclr or fedrotation, which need neither"
        )


def _has_levels(split: Split) -> bool:
    return split.levels is not None or len(np.unique(split.cases)) < len(split)


@dataclass(frozen=True)
class Pool:
    """All images that a site may learn from, with a label or without: those of train, then those of unlabelled."""

    train: Tensor
    unlabelled: Tensor

    def __len__(self) -> int:
        return len(self.train) + len(self.unlabelled)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """The images (B, C, H, W) of these numbers, which need not be copied but for them."""
        found, first = self.train.new_empty(len(index), *self.train.shape[1:]), index < len(self.train)
        found[first] = self.train[index[first]]
        found[~first] = self.unlabelled[index[~first] - len(self.train)]
        return found.to(device)


def pool_of(data: Data) -> Pool:
    return Pool(torch.from_numpy(data.train.inputs), torch.from_numpy(data.unlabelled.inputs))


def pool_levels(data: Data, groups: int) -> Tensor:
    """The level of each image of the pool."""
    return torch.from_numpy(np.concatenate([levels(data.train, groups), levels(data.unlabelled, groups)]).astype(int))


def sample_batches(kinds: Tensor, batch: int, steps: int) -> Iterator[Tensor]:
    """`steps` batches of numbers of images, each spread evenly over the `kinds` (N,) that there are.

    The images of a kind come in random order, all of them before any comes again, which may be in the same batch;
    drawn by torch's global generator.
    """
    streams = [_endless((kinds == kind).nonzero()[:, 0].tolist()) for kind in kinds.unique()]
    size, place = min(batch, len(kinds)), 0
    for _ in range(steps):
        yield torch.tensor([next(streams[(place + i) % len(streams)]) for i in range(size)])
        place += size


def _endless(numbers: Sequence[int]) -> Iterator[int]:
    while True:
        yield from (numbers[i] for i in torch.randperm(len(numbers)).tolist())


@dataclass(frozen=True, kw_only=True)
class Views:
    """How much one view of an image may differ from another."""

    flip: Annotated[float, Ge(0), Le(1), "chance that a view is mirrored, along each axis"] = 0.5
    turn: Annotated[float, Ge(0), Le(180), "largest turn, in degrees"] = 30.0
    zoom: Annotated[float, Ge(0), Lt(1), "largest change of scale: 0.3 shows from 0.7 to 1.3 of the image's side"] = 0.3
    move: Annotated[float, Ge(0), Le(1), "largest move along each axis, of the image's side"] = 0.1
    contrast: Annotated[float, Ge(0), "largest change of contrast, as a natural logarithm"] = 0.4
    brightness: Annotated[float, Ge(0), "largest change of brightness, in deviations of the image"] = 0.3
    noise: Annotated[float, Ge(0), "largest deviation of the noise, in deviations of the image"] = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """A view of each of the images (B, C, H, W), the whole batch at once; drawn by torch's global generator."""
        chance = torch.rand(len(images), 9).to(images.device) * 2 - 1
        grid = F.affine_grid(self._places(chance[:, :6], images.shape), list(images.shape), align_corners=False)
        seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain, offset, noise = chance[:, 6:9, None, None, None].unbind(1)
        mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
        seen = mean + (seen - mean) * (self.contrast * gain).exp()
        rough = self.noise * noise.abs() * torch.randn_like(seen)
        return seen + deviation * (self.brightness * offset + rough)

    def _places(self, chance: Tensor, shape: Sequence[int]) -> Tensor:
        """Where each view looks, as (B, 2, 3) on axes from -1 to 1, of numbers (B, 6) from -1 to 1."""
        angle, scale, tall = math.radians(self.turn) * chance[:, 0], 1 + self.zoom * chance[:, 1], shape[2] / shape[3]
        across, down = (1 - 2 * (chance[:, 2:4] < 2 * self.flip - 1).to(chance)).unbind(1)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        first = torch.stack([across * cos, -across * sin * tall, 2 * self.move * chance[:, 4]], 1)
        second = torch.stack([down * sin / tall, down * cos, 2 * self.move * chance[:, 5]], 1)
        return torch.stack([first, second], 1)
