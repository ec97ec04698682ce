"""A class does not depend on how a mask is packed. Values by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data.file_inspection import inspect_case
from raysim.data.image_reader import read_image
from raysim.data.mask_colours import (
    check_palette,
    classes_from_colours,
    palette_conflicts,
    palette_entries,
    round_labels,
    unique_colours,
)

BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)


def entries(palette: dict[int, tuple[int, ...]] | None, *values: int) -> np.ndarray:
    return palette_entries(np.array(values or (0,)), palette or {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (entries({0: BLACK, 1: RED}), entries({0: BLACK, 1: RED, 2: GREEN})),
        (entries({0: BLACK, 1: RED}), entries(None, 0, 1)),
        (entries({0: BLACK, 1: BLACK}), entries({0: BLACK, 2: BLACK})),
        (entries(None, 0, 255), entries(None, 0, 1)),
    ],
)
def test_palettes_with_equal_classes_are_accepted(one: np.ndarray, other: np.ndarray) -> None:
    assert list(palette_conflicts({"one": one, "other": other})) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (entries({0: BLACK, 1: WHITE}), entries({0: WHITE, 1: BLACK})),
        (entries({0: BLACK, 1: RED}), entries({0: BLACK, 1: GREEN})),
        (entries({0: BLACK, 1: RED}), entries({0: BLACK, 2: RED})),
        (entries({0: BLACK, 1: WHITE}), entries(None, 0, 255)),
        (entries({0: BLACK}), entries({0: WHITE})),
    ],
)
def test_contradicting_palettes_are_refused(one: np.ndarray, other: np.ndarray) -> None:
    (problem,) = palette_conflicts({"one": one, "other": other})
    assert problem.startswith("other: stores the colour")
    assert "'task.data.colours={background: [" in problem


def test_the_order_of_a_palette() -> None:
    check_palette({0: BLACK, 1: RED, 2: (128, 128, 128), 3: WHITE})
    check_palette({0: (9, 9, 9), 1: RED, 2: GREEN})
    for palette in ({0: WHITE, 1: BLACK}, {0: RED, 1: BLACK}, {0: BLACK, 1: WHITE, 2: (128, 128, 128)}):
        with pytest.raises(ConfigError, match="order of its palette is ambiguous"):
            check_palette(palette)


def test_labels_near_a_whole_number_are_rounded() -> None:
    values = np.float32([0.99999994, 1.0009, 0.998, 0.5, -0.0001])
    round_labels(values)
    assert values.tolist() == [1, 1, np.float32(0.998), 0.5, 0]


def test_colours_become_classes_however_they_are_packed(tmp_path: Path) -> None:
    pixels = np.array([[BLACK, RED], [GREEN, BLACK]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    for name, order in {"p": (BLACK, RED, GREEN), "q": (GREEN, RED, BLACK)}.items():
        indices = [[order.index(tuple(pixel)) for pixel in row] for row in pixels.tolist()]
        packed = Image.fromarray(np.array(indices, np.uint8), "P")
        packed.putpalette([part for colour in order for part in colour])
        packed.save(tmp_path / f"{name}.png")
    for name in ("rgb", "p", "q"):
        mask = read_image(str(tmp_path / f"{name}.png"), mask=True, colours=True).array
        assert classes_from_colours(mask, {"a": BLACK, "b": RED, "c": GREEN}).tolist() == [[[0, 1], [2, 0]]]
        with pytest.raises(ConfigError, match=r"has the colours \[0, 255, 0\], which are not a class"):
            classes_from_colours(mask, {"a": BLACK, "b": RED})
    with pytest.raises(ConfigError, match=r"background: \[0, 0, 0\], NAME1: \[0, 255, 0\], NAME2: \[255, 0, 0\]"):
        read_image(str(tmp_path / "rgb.png"), mask=True)
    assert inspect_case(None, str(tmp_path / "p.png")).counts == {0: 2, 1: 1, 2: 1}


def test_masks_of_black_and_white_and_of_ink(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "one.png")
    mask = read_image(str(tmp_path / "one.png"), mask=True)
    assert (mask.array.tolist(), mask.palette) == ([[[0, 1]]], {0: BLACK, 1: WHITE})
    assert read_image(str(tmp_path / "one.png"), mask=True, colours=True).array.tolist() == [[[0, 255]]] * 3
    Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK").save(tmp_path / "cmyk.tif")
    assert read_image(str(tmp_path / "cmyk.tif"), mask=True).array.tolist() == [[[255, 0]]]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_unique_colours_are_sorted_whatever_their_type(kind: type) -> None:
    mask = np.random.default_rng(0).integers(0, 200, (3, 30, 40)).astype(kind)
    mask[:, :20] = mask[:, :1]
    assert unique_colours(mask) == sorted({tuple(pixel) for pixel in mask.reshape(3, -1).T.tolist()})


def test_the_colours_of_a_large_mask_are_found_quickly() -> None:
    mask = np.zeros((3, 2000, 2000), np.uint8)
    mask[0] = np.arange(2000) // 8
    assert len(unique_colours(mask)) == 250
