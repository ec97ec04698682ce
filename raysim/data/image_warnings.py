"""Warnings about prepared images: decisions of the readers, and lost labels. `arrays` are those of `stack_facts`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raysim.core.formatting import pluralize
from raysim.data.data_errors import summarize_notes

if TYPE_CHECKING:
    from raysim.data.image_sites import ImageSites

Array = np.ndarray[Any, np.dtype[Any]]


def warn_about_notes(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    """Warns of decisions of the readers, each with the number of files."""
    notes = [
        (str(file), note)
        for site in arrays
        for row, *both in zip(sites.rows[site], arrays[site]["notes"], arrays[site]["mask_notes"], strict=True)
        for file, notes in zip((row.image, row.label), both, strict=True)
        for note in str(notes).splitlines()
    ]
    for line in summarize_notes(notes):
        warnings.warn(line, stacklevel=3)


def warn_about_erased_labels(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    """Warns of images that lost all their labelled voxels."""
    preparation = sites.preparation
    images = [
        row.image
        for site in arrays
        for row, erased in zip(sites.rows[site], arrays[site]["erased"], strict=True)
        if erased
    ]
    if images:
        causes = {
            "task.data.spacing": preparation.spacing,
            "task.data.size": preparation.size if preparation.fit == "resize" else None,
        }
        warnings.warn(
            f"{' with '.join(key for key, value in causes.items() if value)} removes all labelled voxels of "
            f"{pluralize(len(images), 'image')}, such as {images[0]}; use a finer grid to keep them",
            stacklevel=3,
        )
