"""What a task predicts for an example: one class, several labels, or a number."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from raysim.core.errors import ConfigError

if TYPE_CHECKING:
    from raysim.core.contracts import Task


class Target(StrEnum):
    """The meaning of the outputs (B, K) of a network, and of labels."""

    CLASS = "class"  # logits of K mutually exclusive classes; labels (B, 1, ...): the class index
    LABELS = "labels"  # a logit for each of K labels; labels (B, K): 0 or 1
    NUMBER = "number"  # K is 1: a number in units of the task's scale; labels (B, 1): the number


PREDICTED = {Target.LABELS: "several labels of an image", Target.NUMBER: "a number"}


def require_classes(task: Task, what: str, reason: str) -> None:
    """Raises ConfigError if the task does not predict one of several classes. `what` is a key with its value."""
    if task.target is not Target.CLASS:
        raise ConfigError(
            f"{what} {reason}, but task={task.name} predicts {PREDICTED[task.target]}; use another value of "
            f"{what.partition('=')[0]}, or a task with classes"
        )
