"""Predicted masks in an output folder: writes them from logits, and reads them again for their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from raysim.core.contracts import Split
from raysim.data.case_preparation import CasePreparation
from raysim.data.image_formats import Image, is_nifti
from raysim.data.prediction_grid import Space, restore_logits, restore_slabs
from raysim.data.prediction_writer import Source, write_mask, write_probabilities
from raysim.data.resample import empty_image

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PredictedMasks:
    """Predicted masks of `images`, written to `targets` (paths relative to `folder`); both by case number.

    values: the value of each class in masks. probabilities: whether the probability of each class is also written.
    """

    preparation: CasePreparation
    images: Sequence[str]
    targets: Sequence[str]
    folder: Path
    values: Mapping[str, int]
    probabilities: bool = False

    def is_written(self, case: int) -> bool:
        """Whether all files of a case are complete."""
        return all(path.is_file() for path in self._files(case))

    def write(self, case: int, logits: Array) -> None:
        """Write the files of a case from the logits (n, K, *space) of its examples, the mask last.

        The class of a voxel has the largest logit at the position of the voxel; probabilities are the softmax there.
        """
        scan = self.preparation.read_channels(self.images[case])
        self._write(case, scan, [((), restore_logits(logits, scan, self.preparation))])

    def write_slabs(self, case: int, slabs: Iterable[Array]) -> None:
        """`write` of an image that keeps its size, from its logits in parts, as in `restore_slabs`."""
        scan = self.preparation.read_channels(self.images[case])
        grid, box = empty_image(scan.space, scan.affine), self.preparation.kept_box(scan)
        del scan  # its values may take much memory, and are not needed
        self._write(case, grid, restore_slabs(slabs, grid, box, self.preparation))

    def _write(self, case: int, grid: Image, parts: Iterable[tuple[Space, Array]]) -> None:
        """Write the files of a case from logits (K, *part) at positions in the image; other voxels are background."""
        mask, *others = self._files(case)
        mask.parent.mkdir(parents=True, exist_ok=True)
        classes = np.zeros(grid.space, np.uint8)
        probabilities = np.zeros((len(self.values), *grid.space), np.float32) if others else None
        if probabilities is not None:
            probabilities[0] = 1
        for position, logits in parts:
            classes[position] = logits.argmax(0)
            if probabilities is not None:
                probabilities[(slice(None), *position)] = softmax(logits, axis=0)
        source = Source(self.images[case], grid.affine)
        if probabilities is not None:
            write_probabilities(others[0], probabilities, source)
        write_mask(mask, classes, source, self.values, self.preparation.colours)

    def scored_split(self, case: int, label: str) -> Split:
        """One example whose inputs are the written mask, one-hot (1, K, *space), with the label from a file.

        Both have the size of the image. With the identity as the predictor, a metric of this split is that of the mask.
        Raises ConfigError for a label that does not fit the image.
        """
        image = self.images[case]
        predicted = self.preparation.read(image, str(self._files(case)[0])).mask
        truth = self.preparation.read(image, label).mask
        assert predicted is not None
        assert truth is not None
        classes = np.arange(len(self.values)).reshape(-1, *[1] * (predicted.array.ndim - 1))
        one_hot = (predicted.array == classes).astype(np.float32)
        spacing = np.array([truth.spacing])
        return Split(one_hot[None], truth.array[None].astype(np.uint8), np.zeros(1, int), spacing)

    def _files(self, case: int) -> list[Path]:
        """The mask, and the probabilities if they are written."""
        mask = self.folder / self.targets[case]
        if not self.probabilities:
            return [mask]
        if not is_nifti(mask.name):
            return [mask, mask.with_suffix(".npz")]
        stem, _, _ = mask.name.partition(".nii")
        return [mask, mask.with_name(f"{stem}_probabilities.nii{'.gz' if mask.suffix == '.gz' else ''}")]
