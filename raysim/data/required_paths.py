"""The paths that every node needs: what it must read for a task, and where it must be able to write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, get_args, get_type_hints, runtime_checkable

from raysim.core.contracts import Task
from raysim.data.file_paths import ABSOLUTE_PATH


@runtime_checkable
class OpensFiles(Protocol):
    """What opens a site's data from files. Not the classes themselves: those of images import MONAI, in every actor."""

    def paths(self) -> tuple[list[str], list[str]]:
        """The files and folders to read, and the folders to write into."""


def required_paths(task: Task, config: Any) -> tuple[list[str], list[str]]:
    """The files and folders to read, and the folders to write into. `config` is the task's configuration.

    For a task with its own way to open data, every value of a field marked as a path is to be read.
    """
    if isinstance(task.open, OpensFiles):
        return task.open.paths()
    return list(dict.fromkeys(_path_fields(config))), []


def _path_fields(config: Any) -> Iterator[str]:
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _path_fields(value)
        elif value and ABSOLUTE_PATH in get_args(hints[field.name]):
            yield value
