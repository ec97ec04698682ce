"""The keys under `task.data` of tasks with several labels or a number, and the scale of the number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from annotated_types import Gt

from raysim.core.errors import ConfigError

LabelColumns = Annotated[tuple[str, ...], "columns with 0 or 1 for each case, such as [edema,effusion]"]
NumberColumn = Annotated[str, "column with the number that is predicted"]
NumberScale = Annotated[
    tuple[float, Annotated[float, Gt(0)]] | None,
    "the number at which the network's output is 0, and the difference for which it is 1; by default mean and standard "
    "deviation of the training rows of all inside sites",
]


def check_label_columns(labels: Sequence[str]) -> None:
    """Raises ConfigError for no column, for a repeated one, and for a name that cannot be part of a metric's name."""
    if not labels:
        raise ConfigError(
            "task.data.labels is not set; name the columns with 0 and 1: task.data.labels=[COLUMN,COLUMN]"
        )
    for name in labels:
        if labels.count(name) > 1:
            raise ConfigError(
                f"task.data.labels={list(labels)}: expected each column once, not {name!r} twice; remove one"
            )
        if not name or set("@/") & set(name):
            raise ConfigError(f"task.data.labels has {name!r}: expected a name without @ and /; rename the column")


def scale_of_numbers(table: pd.DataFrame, outside: Collection[str], path: str) -> tuple[float, float]:
    """Mean and deviation of the labels of training rows of inside sites. Raises ConfigError if all are equal."""
    rows = table[(table["split"] == "train") & ~table["site"].isin(outside)]
    numbers = rows["label"].dropna().to_numpy(np.float64)
    mean, deviation = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 0.0)
    if not deviation > 0:
        found = f"are all {numbers[0]:g}" if len(numbers) else "do not exist"
        raise ConfigError(
            f"table {path}: the numbers of the training rows of inside sites {found}, but a regression needs different "
            "ones; correct the column or name another in task.data.target, or set task.data.target_scale"
        )
    return mean, deviation
