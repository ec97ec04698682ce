"""Several files of one case in a table, and series of cases that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.data.file_roles import channel_problems, masks_beside_images, role_problems

Pairs = list[tuple[str, str | None]]


@pytest.mark.parametrize(
    "pairs",
    [
        [("k_0000.png", "k_mask.png"), ("k_0001.png", None)],
        [("k_t1.nii", "k_seg.nii"), ("k_flair.nii", None)],
        [("k_0000.nii", "labels/k.nii"), ("k_0001.nii", None)],
    ],
)
def test_a_further_channel_is_not_an_unlabelled_case(pairs: Pairs) -> None:
    (problem,) = channel_problems(pairs)
    assert "several files for one case: 1 image without a mask" in problem


@pytest.mark.parametrize(
    "pairs",
    [
        [("film_0007.png", "film_0007_m.png"), ("film_0008.png", None)],
        [("film_0000.png", "film_0000_m.png"), ("film_0001.png", "film_0001_m.png"), ("film_0002.png", None)],
        [("k_t1.nii", "k_seg.nii"), ("q_flair.nii", None)],
    ],
)
def test_images_of_a_series_are_cases(pairs: Pairs) -> None:
    assert list(channel_problems(pairs)) == []


def test_one_mask_with_two_names_is_the_label_of_two_images(tmp_path: Path) -> None:
    (tmp_path / "m.png").touch()
    (tmp_path / "n.png").hardlink_to(tmp_path / "m.png")
    images = [str(tmp_path / name) for name in ("a.png", "b.png")]
    (problem,) = role_problems([(images[0], str(tmp_path / "m.png")), (images[1], str(tmp_path / "n.png"))])
    assert f"masks that are the label of more than one image: {tmp_path / 'm.png'} of {' and '.join(images)}" in problem


def test_masks_beside_images_are_found_by_their_names() -> None:
    names = ["a.png", "a_mask.png", "b.nii.gz", "b-Label.nii", "mask.png", "c_mask.png", "a_m.png"]
    assert masks_beside_images(names) == ["a_mask.png", "b-Label.nii"]
