"""Errors about data files that cannot be used, collected so that one message lists them all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.mask_values import UnknownMaskValues, mask_value_advice

MAX_LISTED = 5  # problems listed in one error


class InvalidDataError(ConfigError):
    """Files that cannot be used; `problems` has an error or a line of text for each file.

    The message of several files has a line for each.
    """

    def __init__(self, problems: Sequence[ConfigError | str], mask_values: Collection[float] = ()) -> None:
        """`mask_values` are the values of all masks; by default those in `problems`."""
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        lines = [*map(str, problems[:MAX_LISTED]), *more, *_advice(problems, mask_values)]
        listed = "\n  ".join(["", *lines]) if len(problems) > 1 else f" {'; '.join(lines)}"
        super().__init__(f"the data cannot be used:{listed}")
        self.problems = problems


def _advice(problems: Sequence[ConfigError | str], mask_values: Collection[float]) -> Iterator[str]:
    unknown = [problem for problem in problems if isinstance(problem, UnknownMaskValues)]
    if unknown:
        classes = unknown[0].classes
        listed = {value for problem in unknown for value in problem.values}
        listed |= {value for value in classes.values() if value is not None}
        yield from mask_value_advice(classes, mask_values or listed)


def channels_cure(channels: Iterable[int]) -> str:
    """The cure for images with different numbers of channels."""
    cure = "all images need the same number of channels"
    if set(channels) != {1, 3}:
        return cure
    return f"{cure}: task.data.channels=3 repeats the channel of grey pictures, task.data.channels=1 converts to grey"


def summarize_notes(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line for each note, with the number of files and the first of them; `notes` are pairs of file and note."""
    files: dict[str, list[str]] = {}
    for file, note in notes:
        files.setdefault(note, []).append(file)
    for note, found in files.items():
        yield f"{pluralize(len(set(found)), 'file')}, such as {found[0]}: {note}"


def raise_problems(problems: Sequence[ConfigError | str], mask_values: Collection[float] = ()) -> None:
    """Raises InvalidDataError if there are any problems."""
    if problems:
        raise InvalidDataError(problems, mask_values)


def describe_shape_mismatch(name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> str:
    """The message for two images, or sites, whose examples (C, *space) differ in shape and cannot share a batch."""
    same_channels = shape[0] == expected[0]
    cure = (
        "set one size with task.data.size, or for a segmentation task.data.patch"
        if same_channels
        else channels_cure([shape[0], expected[0]])
    )
    return f"{name}: its prepared shape is {shape} (channels, then space), but that of {other} is {expected}; {cure}"
