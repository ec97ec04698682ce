"""Converts values of masks to classes: checks palettes, maps colours, rounds values near whole numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, Colour

LABEL_TOLERANCE = 1e-3  # a label this close to a whole number was that number before it was stored as a float
MAX_COLOURS = 8  # listed in a message
BLACK = (0, 0, 0)
PaletteEntry = tuple[int, Colour, bool]  # value, its colour, and whether the colour is stored in the file


def round_labels(mask: Array) -> None:
    """Round every value of the mask within LABEL_TOLERANCE of a whole number to it, in place."""
    parts: Any = np.nditer(mask, ["external_loop", "buffered"], ["readwrite"], order="K", buffersize=2**16)
    with parts:
        for part in parts:  # by parts, because a large mask must not be copied
            whole = np.rint(part)
            np.copyto(part, whole, where=np.abs(part - whole) <= LABEL_TOLERANCE)


def unique_colours(mask: Array) -> list[Colour]:
    """The colours of a mask (3, height, width), sorted; black is first."""
    pixels = mask.reshape(len(mask), -1)
    if mask.dtype.kind != "u" or mask.dtype.itemsize > 2:
        return [tuple(int(part) for part in colour) for colour in np.unique(pixels, axis=1).T]
    bits = 8 * mask.dtype.itemsize  # one number for each pixel: to sort the columns of a large mask takes minutes
    codes = pixels[0].astype(np.uint32 if bits == 8 else np.uint64)
    for channel in pixels[1:]:
        codes <<= bits
        codes |= channel
    return [tuple(int(code) >> shift & 2**bits - 1 for shift in (2 * bits, bits, 0)) for code in np.unique(codes)]


def format_colours_option(colours: Iterable[Colour]) -> str:
    """The advice to name these colours, as an argument that can be copied."""
    found = sorted(set(colours))
    if len(found) > MAX_COLOURS:
        return (
            f"There are {len(found)} colours, such as {list(found[-1])}: JPEG compression and smooth edges add them; "
            "save masks as PNG or NIfTI, and resample them with nearest neighbour"
        )
    names = ["background", *(f"NAME{number}" for number in range(1, len(found)))]
    pairs = ", ".join(f"{name}: {list(colour)}" for name, colour in zip(names, found, strict=False))
    return (
        "Store masks as grey pictures, or name the colour of each class, background first, and put the argument in "
        f"quotes: 'task.data.colours={{{pairs}}}'"
    )


def classes_from_colours(mask: Array, colours: Mapping[str, Colour]) -> Array:
    """The class index (1, height, width) of each pixel of a mask (3, height, width), background first.

    Raises ConfigError, without the file's name, for a colour that is not a class.
    """
    indices = np.full((1, *mask.shape[1:]), -1, np.float32)
    for index, colour in enumerate(colours.values()):
        indices[0][(mask == np.reshape(colour, (3, 1, 1))).all(axis=0)] = index
    unknown = indices[0] < 0
    if unknown.any():
        found = unique_colours(mask[:, unknown])
        listed = ", ".join(str(list(colour)) for colour in found[:MAX_COLOURS])
        more = f" and {len(found) - MAX_COLOURS} more" if len(found) > MAX_COLOURS else ""
        classes = ", ".join(f"{name}: {list(colour)}" for name, colour in colours.items())
        raise ConfigError(
            f"has the colours {listed}{more}, which are not a class; the classes are {{{classes}}}; add them to "
            "task.data.colours, or correct the mask"
        )
    return indices


def check_palette(palette: Mapping[int, Colour]) -> None:
    """Raises ConfigError if the order of a mask's palette is ambiguous: the program that wrote it may have sorted it.

    Classes are the indices of a palette, background first. Greys must become lighter with the index, and black, if it
    occurs, must be first.
    """
    colours = [colour for _, colour in sorted(palette.items())]
    greys = [colour for colour in colours if len(set(colour)) == 1]
    if greys != sorted(greys) or (BLACK in colours and colours[0] != BLACK):
        order = ", ".join(f"{index} is {list(colour)}" for index, colour in sorted(palette.items())[:MAX_COLOURS])
        raise ConfigError(
            f"the order of its palette is ambiguous ({order}); expected black first, and greys from dark to light. "
            f"{format_colours_option(colours)}"
        )


def palette_entries(mask: Array, palette: Mapping[int, Colour]) -> Array:
    """(n, 5) value, red, green, blue, and 1 if the colour is stored in the file, of each value of a picture's mask.

    The value of a grey mask is its colour. Masks with many values have no entries: they are refused elsewhere.
    """
    if palette:
        return np.array([(value, *colour, 1) for value, colour in palette.items()], np.int64).reshape(-1, 5)
    values = np.unique(mask)
    values = values[values == np.rint(values)][:256].astype(np.int64)
    return np.stack([values, values, values, values, np.zeros_like(values)], axis=1)


def palette_conflicts(entries: Mapping[str, Array]) -> Iterator[str]:
    """A line for the first mask whose palette contradicts that of another mask; `entries` are `palette_entries`.

    Each value must have one colour in all masks, and each colour one value, unless a single mask has a colour twice.
    """
    if not any(rows[:, 4].any() for rows in entries.values()):
        return
    distinct = all(len(np.unique(rows[:, 1:4], axis=0)) == len(rows) for rows in entries.values())
    colour_of: dict[int, tuple[Any, str]] = {}
    value_of: dict[Colour, tuple[Any, str]] = {}
    for path, rows in entries.items():
        for value, *rgb, stored in rows.tolist():
            colour = tuple(rgb)
            first_colour, other = colour_of.setdefault(value, (colour, path)) if stored else (colour, path)
            first_value, another = value_of.setdefault(colour, (value, path)) if distinct else (value, path)
            if first_colour != colour or first_value != value:
                all_colours = {tuple(row[1:4]) for found in entries.values() for row in found.tolist()}
                yield _describe_conflict(path, value, colour, other if first_colour != colour else another, all_colours)
                return


def _describe_conflict(path: str, value: int, colour: Colour, other: str, colours: set[Colour]) -> str:
    return (
        f"{path}: stores the colour {list(colour)} as {value}, but {other} has another palette or is grey, so the "
        f"classes are not certain. {format_colours_option(colours)}"
    )
