"""What is said of files that cannot be used, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysim.core.errors import ConfigError
from raysim.data.case_preparation import UnknownMaskValues
from raysim.data.file_inspection import FEW

LISTED = 5  # faults named in one error


class FaultyData(ConfigError):
    """Files that cannot be used; `faults` has a line for each."""

    def __init__(self, faults: Sequence[ConfigError | str]) -> None:
        more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        lines = [*map(str, faults[:LISTED]), *more, *_stray_cure(faults)]
        super().__init__("the data cannot be used:\n  " + "\n  ".join(lines))
        self.faults = faults


def _stray_cure(faults: Sequence[ConfigError | str]) -> Iterator[str]:
    """Classes that would hold every value in the label files that were read."""
    strays = [fault for fault in faults if isinstance(fault, UnknownMaskValues)]
    values = sorted({value for fault in strays for value in fault.values})
    if len(values) > FEW or any(value % 1 for value in values):
        yield "a mask has few values, whole numbers; JPEG and interpolation leave others: save masks without them"
    elif strays:
        named = {**strays[0].classes, **{f"NAME{int(value)}": int(value) for value in values}}
        pairs = ", ".join(f"{name}: {value}" for name, value in named.items())
        yield f"name every value, in quotes: 'task.data.classes={{{pairs}}}'"


def refuse(faults: Sequence[ConfigError | str]) -> None:
    """Raises FaultyData if there are any."""
    if faults:
        raise FaultyData(faults)


def unlike(this: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> str:
    """What to say of two images, or sites, whose examples (C, *space) cannot be in one batch."""
    cure = "give all one size with task.data.size" if shape[0] == expected[0] else "all need the same channels"
    return f"{this}: prepared it is {shape} (channels, then space), but {other} is {expected}; {cure}"
