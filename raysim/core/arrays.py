"""Read-only arrays as tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def shared_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """A tensor that shares the memory of a read-only array, so it must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the array is read-only
        return torch.from_numpy(array)
