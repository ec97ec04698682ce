"""Creates the data of a site from the arrays in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysim.core.contracts import SPLITS, Data, Split

Array = np.ndarray[Any, np.dtype[Any]]


def data_from_arrays(arrays: Mapping[str, Array]) -> Data:
    """The data of a site from arrays named `<split>.<field>`; labels and levels are optional."""
    return Data(**{split: _split_from_arrays(arrays, split) for split in SPLITS})


def _split_from_arrays(arrays: Mapping[str, Array], split: str) -> Split:
    return Split(
        inputs=arrays[f"{split}.inputs"],
        labels=arrays.get(f"{split}.labels"),
        cases=arrays[f"{split}.cases"],
        spacing=arrays[f"{split}.spacing"],
        levels=arrays.get(f"{split}.levels"),
    )
