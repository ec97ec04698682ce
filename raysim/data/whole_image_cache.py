"""The cache entries of a site whose examples are patches: its whole images, and patches that are drawn once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.contracts import SPLITS
from raysim.core.seeding import numpy_generator
from raysim.core.whole_images import PatchOptions, WholeImages, find_positions
from raysim.data.cache import ArrayWriter
from raysim.data.case_preparation import Case

Array = np.ndarray[Any, np.dtype[Any]]
POSITIONS = 10_000  # voxels of each class of an image that may be the centre of a patch
DRAWN_TOGETHER = 8  # patches in memory while they are written


class ImageWriter:
    """Writes the images of one split, case after case, as the fields of WholeImages in flat arrays."""

    def __init__(self, folder: Path, split: str, *, dims: int, axes: int, classes: int, labelled: bool) -> None:
        """`dims` is the number of spatial axes of an image, and `axes` that of its spacing."""
        self.classes, self.written = classes, 0
        fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            "voxels": (np.float32, ()),
            "shapes": (np.int64, (dims + 1,)),
            "cases": (np.int64, ()),
            "spacing": (np.float64, (axes,)),
            "lows": (np.float32, ()),
            "positions": (np.int32, (dims,)),
            "counts": (np.int32, (classes - 1,)),
        }
        if labelled:
            fields["masks"] = (np.uint8, ())
        self.writers = {
            name: ArrayWriter(folder / f"{split}.images.{name}.npy", dtype, shape)
            for name, (dtype, shape) in fields.items()
        }

    def append(self, case: Case, key: str) -> None:
        """Append the images of a case; `key` identifies it, to choose its `positions`."""
        for number, image in enumerate(case.inputs):
            self._add("voxels", image.ravel())
            self._add("shapes", np.array([image.shape]))
            self._add("lows", np.array([image.min()]))
            counts = np.zeros(self.classes - 1, np.int32)
            if "masks" in self.writers and case.labels is not None:
                self._add("masks", case.labels[number].ravel())
                random = numpy_generator("positions", key, number)
                positions, counts = find_positions(case.labels[number], self.classes, POSITIONS, random)
                self._add("positions", positions)
            self._add("counts", counts[None])
        self._add("cases", np.full(len(case.inputs), self.written))
        self._add("spacing", np.repeat(np.array([case.spacing]), len(case.inputs), axis=0))
        self.written += 1

    def close(self) -> None:
        """Complete the files."""
        for writer in self.writers.values():
            writer.close()

    def _add(self, name: str, part: Array) -> None:
        self.writers[name].append(part)


def write_images(
    folder: Path, cases: Iterable[tuple[str, str, Case]], labelled: Mapping[str, bool], classes: int
) -> None:
    """Write the images of `cases`, each with its split and a key; `labelled` are the splits whose cases have masks."""
    writers = dict[str, ImageWriter]()
    for split, key, case in cases:
        if not writers:
            dims, axes = case.inputs.ndim - 2, len(case.spacing)
            writers = {
                name: ImageWriter(folder, name, dims=dims, axes=axes, classes=classes, labelled=labelled[name])
                for name in SPLITS
            }
        writers[split].append(case, key)
    for writer in writers.values():
        writer.close()


def whole_images(arrays: Mapping[str, Array], split: str, options: PatchOptions) -> WholeImages:
    """The images of a split, as views of the arrays that `write_images` has written."""
    fields = {name: arrays.get(f"{split}.images.{name}") for name in ("voxels", "masks", "shapes")}
    voxels, masks, shapes = fields["voxels"], fields["masks"], fields["shapes"]
    assert voxels is not None
    assert shapes is not None
    rest = {name: arrays[f"{split}.images.{name}"] for name in ("cases", "spacing", "lows", "positions", "counts")}
    return WholeImages(
        images=tuple(_views(voxels, shapes)),
        labels=None if masks is None else tuple(_views(masks, np.insert(shapes[:, 1:], 0, 1, axis=1))),
        options=options,
        **rest,
    )


def _views(flat: Array, shapes: Array) -> Iterator[Array]:
    """Consecutive parts of a flat array with these shapes."""
    ends = np.concatenate([[0], np.cumsum(shapes.prod(1))]).tolist()
    for (start, end), shape in zip(pairwise(ends), shapes.tolist(), strict=True):
        yield flat[start:end].reshape(shape)


def write_patches(
    folder: Path,
    arrays: Mapping[str, Array],
    options: PatchOptions,
    levels: Mapping[str, Sequence[int | None]],
    seed: int,
) -> None:
    """Write `per_image` patches of every image, drawn with `seed`, as the fields of Split.

    `levels` has the level of each case of a split, or None.
    """
    channels = next(int(shapes[0, 0]) for split in SPLITS if len(shapes := arrays[f"{split}.images.shapes"]))
    for split in SPLITS:
        images = whole_images(arrays, split, options)
        sources = np.repeat(np.arange(len(images)), options.per_image)
        fields = {"sources": sources, "cases": images.cases[sources], "spacing": images.spacing[sources]}
        if len(sources) and None not in levels[split]:
            fields["levels"] = np.array(levels[split], np.int32)[fields["cases"]]
        for name, array in fields.items():
            np.save(folder / f"{split}.{name}.npy", array, allow_pickle=False)
        _write_drawn(folder, split, images, sources, channels, numpy_generator("patches", seed, split))


def _write_drawn(
    folder: Path, split: str, images: WholeImages, sources: Array, channels: int, random: np.random.Generator
) -> None:
    size = images.options.size
    inputs = ArrayWriter(folder / f"{split}.inputs.npy", np.float32, (channels, *size))
    labels = None if images.labels is None else ArrayWriter(folder / f"{split}.labels.npy", np.uint8, (1, *size))
    for start in range(0, len(sources), DRAWN_TOGETHER):
        patches, masks = images.draw(sources[start : start + DRAWN_TOGETHER], random)
        inputs.append(patches)
        if labels is not None and masks is not None:
            labels.append(masks)
    inputs.close()
    if labels is not None:
        labels.close()
