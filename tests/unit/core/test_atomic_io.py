"""Atomic writes: a file has the new or the old content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysim.core.atomic_io import replacing, write_json, write_text


def fail_halfway(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise ZeroDivisionError


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.parquet", "old")]
    with replacing(path) as partial:
        partial.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.parquet", "new")]


def test_a_link_at_a_guessed_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("old")
    for name in ("page.partial", ".page.partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    (tmp_path / "page.html").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "page.html", "new")
    assert ((tmp_path / "page.html").read_text(), (tmp_path / "mine").read_text()) == ("new", "old")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": (float("inf"), "text", None, True)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [None, "text", None, True]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
