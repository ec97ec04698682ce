"""Results of inspections are kept and used again, unless a file or a key changes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from raysim.data import inspection_cache
from raysim.data.case_preparation import CasePreparation
from raysim.data.inspection_cache import Case, inspect_cases

VALUES = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """A volume with a mask, and a picture with a palette as its mask; their cache is a folder of the test."""
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "cache"))
    nibabel.save(nibabel.Nifti1Image(VALUES, np.diag([1, 2, 3, 1])), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image((VALUES > 60).astype(np.uint8), np.diag([1, 2, 3, 1])), tmp_path / "a_m.nii")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "b.png")
    mask = Image.fromarray((np.arange(64) % 2).astype(np.uint8).reshape(8, 8), "P")
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "b_m.png")
    return [
        (str(tmp_path / "a.nii"), str(tmp_path / "a_m.nii")),
        (str(tmp_path / "b.png"), str(tmp_path / "b_m.png")),
        (str(tmp_path / "b.png"), None),
    ]


def texts(cases: list[Case], preparation: CasePreparation | None = None) -> list[str]:
    return [repr(inspection) for inspection in inspect_cases(cases, preparation)]


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "inspections").rglob("*.json"))


def test_a_stored_inspection_is_equal_and_used_again(tmp_path: Path, cases: list[Case]) -> None:
    first, done = inspect_cases(cases, None), list[tuple[int, int]]()
    again = inspect_cases(cases, None, lambda *counts: done.append(counts))
    assert list(map(repr, first)) == list(map(repr, again))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert len(stored(tmp_path)) == 3
    for path in stored(tmp_path):
        path.write_text(path.read_text().replace('"channels": 1', '"channels": 9'))
    assert [each.statistics and each.statistics.channels for each in inspect_cases(cases, None)] == [9, 9, 9]
    for path in stored(tmp_path):
        path.write_text("{")
    assert texts(cases) == list(map(repr, first))


def test_a_changed_file_or_key_is_inspected_again(tmp_path: Path, cases: list[Case]) -> None:
    before = texts(cases[:1])
    nibabel.save(nibabel.Nifti1Image(VALUES * 2, np.diag([1, 2, 3, 1])), tmp_path / "a.nii")
    assert texts(cases[:1]) != before
    classes = {"background": 0, "foreground": None}
    preparation = CasePreparation(classes, "none", "resize", None, None, slices=False, channels=None)
    assert "1 foreground" in texts(cases[:1], preparation)[0]
    assert len(stored(tmp_path)) == 3


def test_problems_are_not_stored(tmp_path: Path, cases: list[Case]) -> None:
    (tmp_path / "b.png").write_text("x")
    assert "cannot be read" in texts(cases[2:])[0]
    assert "does not exist" in texts([(str(tmp_path / "none.png"), None)])[0]
    assert not stored(tmp_path)


@pytest.mark.slow
def test_many_cases_are_inspected_in_processes(cases: list[Case]) -> None:
    many = cases * inspection_cache.MANY_CASES
    assert texts(many) == texts(cases) * inspection_cache.MANY_CASES
