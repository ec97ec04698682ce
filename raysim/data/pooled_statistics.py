"""Values of preparation keys that are computed from the training images of all inside sites."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.seeding import numpy_generator
from raysim.data.cache import cache_key, fingerprint, load_or_create
from raysim.data.case_arrays import CaseRow
from raysim.data.case_preparation import CasePreparation
from raysim.data.data_errors import raise_problems

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLED_VOXELS = 10_000  # of each image, so that all images count alike
PERCENTILES = (0.5, 99.5)
READ_TOGETHER = 4  # images


def pooled_statistics(rows: Sequence[CaseRow], preparation: CasePreparation, cache_folder: Path) -> tuple[Array, Array]:
    """The median spacing (D,) of images, and `[low, high, mean, deviation]` of their labelled voxels.

    low and high are the PERCENTILES of at most SAMPLED_VOXELS labelled voxels of each image, and mean and deviation
    those of the same voxels. NaN without labelled voxels. Raises ConfigError for files that cannot be read.
    """
    plain = replace(preparation, spacing=None)
    key = cache_key(
        ["pooled", asdict(replace(plain, further={})), [(row.key, _fingerprints(row, plain)) for row in rows]]
    )
    found = load_or_create(cache_folder, key, lambda: _compute(rows, plain))
    return found["spacing"], found["intensity"]


def _fingerprints(row: CaseRow, preparation: CasePreparation) -> list[list[int | str]]:
    files = (row.image, row.label, *preparation.further.get(row.image, ()))
    return [fingerprint(file) for file in files if isinstance(file, str)]


def _compute(rows: Sequence[CaseRow], preparation: CasePreparation) -> dict[str, Array]:
    with ThreadPoolExecutor(READ_TOGETHER) as pool:
        found = list(pool.map(lambda row: _measure(row, preparation), rows))
    measured = [each for each in found if not isinstance(each, ConfigError)]
    raise_problems([each for each in found if isinstance(each, ConfigError)])
    voxels = np.concatenate([values for _, values in measured]).astype(np.float64)
    intensity = np.full(4, np.nan)
    if len(voxels):
        intensity = np.array([*np.percentile(voxels, PERCENTILES), voxels.mean(), voxels.std()])
    return {"spacing": np.median([spacing for spacing, _ in measured], axis=0), "intensity": intensity}


def _measure(row: CaseRow, preparation: CasePreparation) -> tuple[tuple[float, ...], Array] | ConfigError:
    """The spacing of an image, and values of its labelled voxels."""
    try:
        files = preparation.read(row.image, row.label)
    except ConfigError as error:  # returned, so that one attempt finds every invalid file
        return error
    if files.mask is None:
        return files.image.spacing, np.zeros(0)
    voxels = files.image.array[:, preparation.is_foreground(files.mask.array)[0]].ravel()
    random = numpy_generator("pooled", row.key)
    return files.image.spacing, random.choice(voxels, min(len(voxels), SAMPLED_VOXELS), replace=False)
