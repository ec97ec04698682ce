"""The values of masks and the classes that they mean; unknown values are refused with the classes that would fit."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.file_inspection import MAX_LABEL_VALUES

Array = np.ndarray[Any, np.dtype[Any]]
MaskClasses = Mapping[str, int | None]  # mask values by class name; None: the only value besides 0 that the masks have
IGNORED = 255  # class index of the voxels that loss and metrics leave out


class UnknownMaskValues(ConfigError):
    """A label file has `values` that are not a class; `classes` are the values of the classes by name."""

    def __init__(self, path: str, values: Sequence[float], classes: MaskClasses) -> None:
        digits = [str(np.float32(value)).removesuffix(".0") for value in values[:8]]  # all digits: 0.99 is not 1
        shown = ", ".join(digits) + (", ..." if len(values) > 8 else "")
        expected = "expected 0 and one other value, the same in all masks"
        if None not in classes.values():
            expected = f"which are not a class; the classes are {list(classes.values())}"
        super().__init__(f"{path}: has the values {shown}, {expected}")
        self.values, self.classes = values, classes


def class_indices(path: str, mask: Array, classes: MaskClasses, ignore: int | None) -> tuple[Array, int]:
    """The class index of each voxel, IGNORED for the value `ignore`, and the value of the class whose value is None.

    That value is 0 if all classes have a value, or the mask has none. Raises UnknownMaskValues, naming the file, for
    values that are not a class.
    """
    known = [value for value in (*classes.values(), ignore) if value is not None]
    unknown, foreground = np.setdiff1d(mask, known).tolist(), 0
    if None in classes.values() and len(unknown) == 1 and unknown[0] > 0 and unknown[0] % 1 == 0:
        foreground, unknown = int(unknown[0]), []
    if unknown:
        raise UnknownMaskValues(path, unknown, classes)
    indices = np.zeros(mask.shape, np.float32)
    for index, value in enumerate(classes.values()):
        indices[mask == (foreground if value is None else value)] = index if value is not None or foreground else 0
    if ignore is not None:
        indices[mask == ignore] = IGNORED
    return indices, foreground


def mask_value_advice(classes: MaskClasses, values: Collection[float]) -> Iterator[str]:
    """The argument `task.data.classes` that fits masks with these values, or how to store masks."""
    if len(values) > MAX_LABEL_VALUES or any(value % 1 for value in values):
        yield (
            "masks need few values, all whole numbers; JPEG compression and interpolation add other values: "
            "save masks as PNG or NIfTI, and resample them with nearest neighbour"
        )
        return
    argument = format_classes(fitting_classes(classes, values))
    yield f"give each value a class name, and put the argument in quotes: {argument}"
    if len(values) > 2:
        yield "if several values mean the same class, save all masks with one value for it"
    if IGNORED in values and len(values) > 2:
        yield "if 255 marks voxels without a label, leave it out of the classes and add task.data.ignore=255"


def fitting_classes(classes: MaskClasses, values: Collection[float]) -> dict[str, int]:
    """A class for each of `values`, with the names of `classes` where they fit, the background first."""
    found = sorted(map(int, {*values, 0} if len(values) < 2 else values))
    known = {name: value for name, value in classes.items() if value in found}
    names = [name for name in classes if name not in known]
    rest = [value for value in found if value not in known.values()]
    named = zip(names if len(names) == len(rest) else (f"NAME{value}" for value in rest), rest, strict=True)
    pairs = known | dict(named)
    order = [name for name in (*classes, *pairs) if name in pairs]
    if next(iter(classes), None) not in pairs:
        order.sort(key=pairs.__getitem__)
    return {name: pairs[name] for name in dict.fromkeys(order)}


def format_classes(classes: Mapping[str, int]) -> str:
    """The argument `task.data.classes=...`, quoted for a shell."""
    return shlex.quote(f"task.data.classes={{{', '.join(f'{name}: {value}' for name, value in classes.items())}}}")
