"""The paths that every node needs: the files that it reads for a task, and the folders that it writes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, get_args, get_type_hints, runtime_checkable

from raysim.core.contracts import Task
from raysim.data.file_paths import ABSOLUTE_PATH


@runtime_checkable
class OpensFiles(Protocol):
    """An object that opens the data of a site from files.

    A protocol, so that this module does not import the classes of image tasks, which import MONAI.
    """

    def paths(self) -> tuple[list[str], list[str]]:
        """The files and folders to read, and the folders to write into."""


def required_paths(task: Task, config: Any) -> tuple[list[str], list[str]]:
    """The files and folders to read, and the folders to write into. `config` is the task's configuration.

    For a task with any other opener, the paths to read are the values of all fields that are marked as paths.
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
