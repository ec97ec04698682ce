"""The keys under `task` that several tasks have."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Gt, Len

MetricNames = Annotated[tuple[str, ...], Len(1), "the main one first: names of `raysim list metrics`, or module:Name"]
BatchSize = Annotated[int, Gt(0), "examples in a batch"]
Augmentation = Annotated[
    tuple[dict[str, Any], ...], "names of random MONAI transforms or module:Class, and their arguments"
]
