"""The columns of predictions.csv from the outputs of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from raysim.core.targets import Target
from raysim.tasks.multilabel import MultiLabel
from raysim.tasks.new_cases import TrainedTask
from raysim.tasks.regression import Regression

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Sequence[Any] | Array]


def target_of(config: Any) -> Target:
    """What a task with this configuration predicts."""
    if isinstance(config, MultiLabel):
        return Target.LABELS
    return Target.NUMBER if isinstance(config, Regression) else Target.CLASS


def prediction_columns(task: TrainedTask, outputs: Array) -> tuple[Sequence[Any] | Array, Columns]:
    """The prediction of each case, and columns with probabilities, from outputs (cases, K).

    The prediction is the class, the labels with a probability above 0.5 (separated by `;`), or the number.
    """
    names, target = list(task.classes), target_of(task.config)
    if target is Target.NUMBER:
        offset, unit = task.config.data.target_scale
        return offset + unit * outputs[:, 0], {}
    probabilities = expit(outputs) if target is Target.LABELS else softmax(outputs, axis=1)
    columns: Columns = {f"probability_{name}": column for name, column in zip(names, probabilities.T, strict=True)}
    if target is Target.LABELS:
        return [";".join(np.array(names)[row]) for row in probabilities > 0.5], columns
    return [names[index] for index in probabilities.argmax(1)], columns
