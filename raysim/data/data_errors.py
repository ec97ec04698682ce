"""Errors about data files that cannot be used, collected so that one message lists them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.case_preparation import UnknownMaskValues
from raysim.data.file_inspection import MAX_LABEL_VALUES

MAX_LISTED = 5  # problems listed in one error


class InvalidDataError(ConfigError):
    """Files that cannot be used; `problems` has an error or a line of text for each file."""

    def __init__(self, problems: Sequence[ConfigError | str]) -> None:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        lines = [*map(str, problems[:MAX_LISTED]), *more, *_mask_value_advice(problems)]
        super().__init__("the data cannot be used:\n  " + "\n  ".join(lines))
        self.problems = problems


def _mask_value_advice(problems: Sequence[ConfigError | str]) -> Iterator[str]:
    """The value of `task.data.classes` that would cover every unknown mask value, or how to store masks."""
    unknown = [problem for problem in problems if isinstance(problem, UnknownMaskValues)]
    values = sorted({value for problem in unknown for value in problem.values})
    if len(values) > MAX_LABEL_VALUES or any(value % 1 for value in values):
        yield (
            "expected masks with few values, all whole numbers; JPEG compression and interpolation add other values: "
            "save masks without both"
        )
    elif unknown:
        classes = {**unknown[0].classes, **{f"NAME{int(value)}": int(value) for value in values}}
        pairs = ", ".join(f"{name}: {value}" for name, value in classes.items())
        yield f"name every value and put the argument in quotes: 'task.data.classes={{{pairs}}}'"


def channels_cure(channels: Iterable[int]) -> str:
    """What to do about images with different numbers of channels."""
    cure = "all images need the same number of channels"
    if set(channels) != {1, 3}:
        return cure
    return f"{cure}: task.data.channels=3 repeats the channel of grey pictures, task.data.channels=1 makes all grey"


def summarize_notes(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line for each note, with the number of files and the first of them; `notes` are pairs of file and note."""
    files: dict[str, list[str]] = {}
    for file, note in notes:
        files.setdefault(note, []).append(file)
    for note, found in files.items():
        yield f"{pluralize(len(set(found)), 'image')}, such as {found[0]}: {note}"


def raise_problems(problems: Sequence[ConfigError | str]) -> None:
    """Raises InvalidDataError if there are any problems."""
    if problems:
        raise InvalidDataError(problems)


def describe_shape_mismatch(name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> str:
    """The message for two images, or sites, whose examples (C, *space) differ in shape and cannot share a batch."""
    same_channels = shape[0] == expected[0]
    cure = "set one size with task.data.size" if same_channels else channels_cure([shape[0], expected[0]])
    return f"{name}: its prepared shape is {shape} (channels, then space), but that of {other} is {expected}; {cure}"
