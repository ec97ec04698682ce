"""Patches of images of any size: where they are drawn, how they are cut, and which voxels may be their centre."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raysim.core.whole_images import PatchOptions, WholeImages, cut, find_positions


def whole(arrays: list[Any], labels: list[Any], size: tuple[int, ...], positive: float = 0.0) -> WholeImages:
    """Images (*space) with one channel, and their labels of the classes 0, 1 and 2."""
    random = np.random.default_rng(0)
    found = [find_positions(label[None], 3, 100, random) for label in labels]
    return WholeImages(
        images=[array[None].astype(np.float32) for array in arrays],
        labels=[label[None] for label in labels],
        cases=np.arange(len(arrays)),
        spacing=np.ones((len(arrays), arrays[0].ndim)),
        lows=np.array([array.min() for array in arrays], np.float32),
        positions=np.concatenate([positions for positions, _ in found]),
        counts=np.stack([counts for _, counts in found]),
        options=PatchOptions(size=size, positive=positive),
    )


def test_a_patch_is_cut_with_padding_outside_of_the_image() -> None:
    image = np.arange(12.0).reshape(1, 3, 4)
    assert cut(image, np.array([1, 2]), (2, 2), -1)[0].tolist() == [[6, 7], [10, 11]]
    assert cut(image, np.array([2, -1]), (2, 3), -1)[0].tolist() == [[-1, 8, 9], [-1, -1, -1]]


def test_positions_of_each_class_are_sorted_and_limited() -> None:
    label = np.zeros((1, 4, 4), np.uint8)
    label[0, 1, 2] = label[0, 3, 0] = 1
    label[0, 2] = 2
    positions, counts = find_positions(label, 4, 3, np.random.default_rng(0))
    assert counts.tolist() == [2, 3, 0]
    assert positions[:2].tolist() == [[1, 2], [3, 0]]
    assert set(positions[2:, 0].tolist()) == {2}


def test_every_position_inside_the_image_is_drawn_equally_often() -> None:
    image = np.arange(20).reshape(4, 5)
    images = whole([image], [np.zeros((4, 5), np.uint8)], (3, 3))
    inputs, labels = images.draw(np.zeros(3000, int), np.random.default_rng(0))
    assert inputs.shape == (3000, 1, 3, 3)
    assert labels is not None
    assert labels.shape == (3000, 1, 3, 3)
    first, counts = np.unique(inputs[:, 0, 0, 0], return_counts=True)
    assert first.tolist() == [0, 1, 2, 5, 6, 7]  # 2 x 3 corners
    assert counts.min() > 430


def test_the_positive_share_is_centred_on_the_classes_of_the_image() -> None:
    label = np.zeros((9, 9), np.uint8)
    label[1, 1], label[7, 3:6] = 1, 2
    images = whole([np.zeros((9, 9))], [label], (3, 3), positive=0.5)
    _, labels = images.draw(np.zeros(4000, int), np.random.default_rng(0))
    assert labels is not None
    centre = labels[:, 0, 1, 1]
    # Of the 49 uniform positions, 1 has class 1 in its centre, and 3 class 2.
    assert np.mean(centre == 1) == pytest.approx(0.25 + 0.5 / 49, abs=0.02)
    assert np.mean(centre == 2) == pytest.approx(0.25 + 0.5 * 3 / 49, abs=0.02)


def test_a_patch_around_a_voxel_at_the_border_is_moved_into_the_image() -> None:
    label = np.zeros((6, 6), np.uint8)
    label[5, 0] = 1
    images = whole([np.arange(36).reshape(6, 6)], [label], (4, 4), positive=1.0)
    inputs, _ = images.draw(np.zeros(5, int), np.random.default_rng(0))
    assert np.unique(inputs[:, 0, 0, 0]).tolist() == [12]


def test_an_image_smaller_than_a_patch_is_in_its_centre() -> None:
    images = whole([np.full((2, 5), 7)], [np.ones((2, 5), np.uint8)], (5, 5), positive=0.5)
    inputs, labels = images.draw(np.zeros(4, int), np.random.default_rng(0))
    assert labels is not None
    assert (inputs == 7).all()  # padded with the smallest value of the image
    assert labels[:, 0, :, 0].tolist() == [[0, 1, 1, 0, 0]] * 4  # as MONAI's sliding window pads


def test_the_images_of_two_sites() -> None:
    label = np.zeros((4, 4), np.uint8)
    label[0, 0] = 1
    one, other = (
        whole([np.zeros((4, 4))], [label], (2, 2), 1.0),
        whole([np.ones((5, 5))], [np.eye(5, dtype=np.uint8)], (2, 2)),
    )
    both = one + other
    assert len(both) == 2
    inputs, labels = both.draw(np.array([0, 1, 1]), np.random.default_rng(0))
    assert labels is not None
    assert inputs[:, 0, 0, 0].tolist() == [0, 1, 1]
    assert labels[:, 0, 1, 1].tolist()[1:] == [1, 1]


def test_the_images_of_a_case() -> None:
    images = whole([np.zeros((3, 3))] * 4, [np.zeros((3, 3), np.uint8)] * 4, (2, 2))
    images.cases[:] = [0, 0, 1, 2]
    found = {case: numbers.tolist() for case, numbers in images.of_cases(np.array([0, 0, 1, 1, 3, 3]))}
    assert found == {0: [0, 1], 2: [3]}
