"""Whole images of any size, from which the examples of a split are drawn as patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """How a whole image is predicted from patches: windows of the size of a patch, whose predictions are averaged."""

    overlap: Annotated[float, Ge(0), Lt(1), "overlap of neighbouring windows, as a fraction of the window"] = 0.5
    gaussian: Annotated[
        bool, "weight predictions by a Gaussian around the centre of their window; false: equal weights"
    ] = True
    batch_size: Annotated[int, Gt(0), "windows that are predicted together"] = 4
    mirror: Annotated[
        tuple[Annotated[int, Ge(0), Le(2)], ...],
        "spatial axes to mirror; predictions are averaged over all combinations, so 3 axes take 8 times as long",
    ] = ()


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """The size of a patch along each axis, the patches of an image in an epoch, and how they are drawn."""

    size: tuple[int, ...]
    per_image: int = 1
    positive: float = 0.0
    window: SlidingWindow = field(default_factory=SlidingWindow)


@dataclass(frozen=True, eq=False)
class WholeImages:
    """The images of a split; the arrays are read-only and may be memory-mapped.

    images: each (C, *space), of any size. labels: class indices, each (1, *space); None without labels.
    cases, spacing: (n,) and (n, D), as in Split, for each image.
    lows: (n,) the smallest value of each image, with which images smaller than a patch are padded.
    positions: (P, D) voxels of the classes 1 to K - 1, sorted by image and class; a limited number of each.
    counts: (n, K - 1) the number of `positions` of each image and class.
    """

    images: Sequence[Array]
    labels: Sequence[Array] | None
    cases: Array
    spacing: Array
    lows: Array
    positions: Array
    counts: Array
    options: PatchOptions

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: WholeImages) -> WholeImages:
        """The images of both, with the options of this one."""
        labels = None if self.labels is None or other.labels is None else (*self.labels, *other.labels)
        arrays = ("cases", "spacing", "lows", "positions", "counts")
        joined: Any = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in arrays}
        return replace(self, images=(*self.images, *other.images), labels=labels, **joined)

    def draw(self, numbers: Array, random: np.random.Generator) -> tuple[Array, Array | None]:
        """A patch (C, *size) of each image of `numbers` (B,), and its label: (B, C, *size) and (B, 1, *size).

        With probability `positive`, the centre is a voxel of a class of the image that is not the background, and all
        such classes are equally likely; the patch is moved to be inside the image. Otherwise all positions inside the
        image are equally likely. An image that is smaller than a patch is centred in it.
        """
        corners = [self._draw_corner(int(number), random) for number in numbers]
        size, pairs = self.options.size, list(zip(numbers, corners, strict=True))
        inputs = np.stack([cut(self.images[number], corner, size, self.lows[number]) for number, corner in pairs])
        if self.labels is None:
            return inputs, None
        return inputs, np.stack([cut(self.labels[number], corner, size, 0) for number, corner in pairs])

    def of_cases(self, sources: Array) -> Iterator[tuple[int, Array]]:
        """Yields each case of the images `sources`, with the indices of its images, in order."""
        numbers = np.unique(sources)
        for case in np.unique(self.cases[numbers]):
            yield int(case), numbers[self.cases[numbers] == case]

    def _draw_corner(self, number: int, random: np.random.Generator) -> Array:
        size = np.array(self.options.size)
        space = np.array(self.images[number].shape[1:])
        spare = np.maximum(space - size, 0)
        corner = random.integers(spare + 1)
        present = np.flatnonzero(self.counts[number])
        if random.random() < self.options.positive and len(present):
            corner = np.clip(self._draw_voxel(number, int(random.choice(present)), random) - size // 2, 0, spare)
        centred: Array = np.where(space < size, -((size - space) // 2), corner)
        return centred

    def _draw_voxel(self, number: int, column: int, random: np.random.Generator) -> Array:
        before = int(self.counts[:number].sum() + self.counts[number, :column].sum())
        voxel: Array = self.positions[before + random.integers(self.counts[number, column])]
        return voxel


def cut(array: Array, corner: Array, size: Sequence[int], fill: float) -> Array:
    """A copy of the patch (C, *size) of (C, *space) that begins at `corner`; outside of the array it is `fill`."""
    patch = np.full((len(array), *size), fill, array.dtype)
    source, target = [], []
    for start, length, stop in zip(corner.tolist(), size, array.shape[1:], strict=True):
        inside = slice(max(start, 0), min(start + length, stop))
        source.append(inside)
        target.append(slice(inside.start - start, inside.stop - start))
    patch[(slice(None), *target)] = array[(slice(None), *source)]
    return patch


def find_positions(label: Array, classes: int, most: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Voxels of the classes 1 to `classes` - 1 of (1, *space), at most `most` of each: (P, D), and (classes - 1,)."""
    found = []
    for index in range(1, classes):
        flat = np.flatnonzero(label[0] == index)
        found.append(flat if len(flat) <= most else np.sort(random.choice(flat, most, replace=False)))
    joined = np.concatenate([np.zeros(0, np.int64), *found])
    positions = np.stack(np.unravel_index(joined, label.shape[1:]), axis=1)
    return positions.astype(np.int32), np.array([len(each) for each in found], np.int32)
