"""Images for pre-training without labels: the image pool of a site, its levels, balanced batches and random views."""

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

from raysim.core.arrays import shared_tensor
from raysim.core.contracts import Array, Data, Split, Task
from raysim.core.errors import ConfigError


def levels_along(slices: int, groups: int) -> Array:
    """The level, 1 to `groups`, of each of the `slices` slices of a volume, in order along its axis.

    Each level has q = slices / groups slices, rounded half up, and at least one. The last level has the remaining
    slices. For example, with 4 groups, 5 slices have the levels 1, 2, 3, 4, 4; 6 slices have no level 4; 10 slices
    give 3, 3, 3 and 1 slices per level.
    """
    per_level = max(1, math.floor(slices / groups + 0.5))
    return np.minimum(np.arange(slices) // per_level, groups - 1).astype(np.int32) + 1


def levels(split: Split, groups: int) -> Array:
    """The level (N,) of each example: from the table if it has levels, else from the slice's position in its volume."""
    if split.levels is not None:
        return split.levels
    counts = np.unique(split.cases, return_counts=True)[1]  # cases are numbered in order
    return np.concatenate([np.zeros(0, np.int32), *(levels_along(int(count), groups) for count in counts)])


def check_images(task: Task) -> None:
    """Raises ConfigError unless the examples are 2-D images."""
    if len(task.shape) == 4:
        raise ConfigError("pre-training needs 2-D slices, but the examples are volumes; set task.data.slices=true")
    if len(task.shape) != 3:
        raise ConfigError(
            "pre-training needs images, but the examples are rows of a table; choose an algorithm without pre-training"
        )


def check_levels(task: Task) -> None:
    """Raises ConfigError unless the examples are 2-D images and at least one inside site has levels for them."""
    check_images(task)
    site_data = (task.open(site) for site in task.inside)
    if not any(_has_levels(split) for data in site_data for split in (data.train, data.unlabelled)):
        raise ConfigError(
            "the images are not slices of volumes, so it is unknown which of them show the same part of the body: use "
            "volumes with task.data.slices=true, or add a column `partition` to the table, or set algorithm=fedsimclr "
            "or algorithm=fedrotation, which do not need levels"
        )


def _has_levels(split: Split) -> bool:
    images = len(split) if split.sources is None else len(np.unique(split.sources))
    return split.levels is not None or len(np.unique(split.cases)) < images


@dataclass(frozen=True)
class ImagePool:
    """All images of a site for pre-training, labelled or not: the images of train, then those of unlabelled."""

    train: Tensor
    unlabelled: Tensor

    @classmethod
    def of(cls, data: Data) -> ImagePool:
        return cls(shared_tensor(data.train.inputs), shared_tensor(data.unlabelled.inputs))

    @classmethod
    def of_split(cls, split: Split) -> ImagePool:
        """The images of one split."""
        images = shared_tensor(split.inputs)
        return cls(images, images[:0])

    def __len__(self) -> int:
        return len(self.train) + len(self.unlabelled)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """The images (B, C, H, W) at `index`, on `device`. Only these images are copied."""
        images, in_train = self.train.new_empty(len(index), *self.train.shape[1:]), index < len(self.train)
        images[in_train] = self.train[index[in_train]]
        images[~in_train] = self.unlabelled[index[~in_train] - len(self.train)]
        return images.to(device)


def pool_levels(data: Data, groups: int) -> Tensor:
    """The level (N,) of each image of the pool."""
    return torch.cat([split_levels(data.train, groups), split_levels(data.unlabelled, groups)])


def split_levels(split: Split, groups: int) -> Tensor:
    """The level (N,) of each image of the split."""
    return torch.from_numpy(levels(split, groups).astype(np.int64))


def sample_batches(groups: Tensor, batch: int, steps: int) -> Iterator[Tensor]:
    """`steps` batches of image indices, each spread evenly over the distinct values of `groups` (N,).

    The images of a group are in random order, each once per pass over the group. A new pass may begin within a batch.
    The order is drawn from torch's global generator.
    """
    streams = [_endless((groups == group).nonzero()[:, 0].tolist()) for group in groups.unique()]
    size, position = min(batch, len(groups)), 0
    for _ in range(steps):
        yield torch.tensor([next(streams[(position + i) % len(streams)]) for i in range(size)])
        position += size


def _endless(indices: Sequence[int]) -> Iterator[int]:
    while True:
        yield from (indices[i] for i in torch.randperm(len(indices)).tolist())


@dataclass(frozen=True, kw_only=True)
class Views:
    """The ranges of the random changes that create a view of an image."""

    flip: Annotated[float, Ge(0), Le(1), "probability that a view is mirrored, for each axis"] = 0.5
    turn: Annotated[float, Ge(0), Le(180), "largest rotation, in degrees"] = 30.0
    zoom: Annotated[float, Ge(0), Lt(1), "largest change of scale: with 0.3, a view shows 0.7 to 1.3 of the side"] = 0.3
    move: Annotated[float, Ge(0), Le(1), "largest shift along each axis, as a fraction of the image's side"] = 0.1
    contrast: Annotated[float, Ge(0), "largest change of contrast, as a natural logarithm"] = 0.4
    brightness: Annotated[float, Ge(0), "largest change of brightness, in standard deviations of the image"] = 0.3
    noise: Annotated[float, Ge(0), "largest standard deviation of the noise, relative to that of the image"] = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """One view of each image (B, C, H, W), computed for the whole batch. It uses torch's global generator."""
        draws = torch.rand(len(images), 9).to(images.device) * 2 - 1
        grid = F.affine_grid(self._affine(draws[:, :6], images.shape), list(images.shape), align_corners=False)
        views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        contrast, brightness, noise = draws[:, 6:9, None, None, None].unbind(1)
        mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
        views = mean + (views - mean) * (self.contrast * contrast).exp()
        scaled_noise = self.noise * noise.abs() * torch.randn_like(views)
        return views + deviation * (self.brightness * brightness + scaled_noise)

    def _affine(self, draws: Tensor, shape: Sequence[int]) -> Tensor:
        """The affine maps (B, 2, 3) from views to images for draws (B, 6) in [-1, 1]; the axes range from -1 to 1."""
        angle, scale, aspect = math.radians(self.turn) * draws[:, 0], 1 + self.zoom * draws[:, 1], shape[2] / shape[3]
        mirror_x, mirror_y = (1 - 2 * (draws[:, 2:4] < 2 * self.flip - 1).to(draws)).unbind(1)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        row_x = torch.stack([mirror_x * cos, -mirror_x * sin * aspect, 2 * self.move * draws[:, 4]], 1)
        row_y = torch.stack([mirror_y * sin / aspect, mirror_y * cos, 2 * self.move * draws[:, 5]], 1)
        return torch.stack([row_x, row_y], 1)
