"""Creates the data of a site from the arrays in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysim.core.contracts import SPLITS, Data, Split
from raysim.core.whole_images import PatchOptions
from raysim.data.whole_image_cache import whole_images

Array = np.ndarray[Any, np.dtype[Any]]


def data_from_arrays(arrays: Mapping[str, Array], patches: PatchOptions | None = None) -> Data:
    """The data of a site from arrays named `<split>.<field>`; labels and levels are optional.

    With `patches`, the arrays have the whole images and patches of them.
    """
    return Data(**{split: _split_from_arrays(arrays, split, patches) for split in SPLITS})


def _split_from_arrays(arrays: Mapping[str, Array], split: str, patches: PatchOptions | None) -> Split:
    return Split(
        inputs=arrays[f"{split}.inputs"],
        labels=arrays.get(f"{split}.labels"),
        cases=arrays[f"{split}.cases"],
        spacing=arrays[f"{split}.spacing"],
        levels=arrays.get(f"{split}.levels"),
        images=None if patches is None else whole_images(arrays, split, patches),
        sources=arrays.get(f"{split}.sources"),
    )
