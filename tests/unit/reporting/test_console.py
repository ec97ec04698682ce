"""The tables at the end of a run."""

from __future__ import annotations

from typing import Any

from raysim.reporting.console import site_tables


def headings(**sites: dict[str, float]) -> list[list[Any]]:
    """The column headings of each table for inside sites with these scores."""
    rows = {site: {"role": "inside", **scores} for site, scores in sites.items()}
    summary = {"sites": rows, "metric": "inside/test/dice", "direction": "higher", "metrics": {}}
    return [[column.header for column in table.columns[2:]] for table in site_tables(summary, 100)]


def test_columns_are_in_the_order_of_the_task_with_the_test_split_first() -> None:
    scores = {"val/f1": 0.5, "val/dice": 0.5, "test/f1": 0.5, "test/dice": 0.5}
    assert headings(A=scores) == [["test\nf1", "test\ndice"], ["val\nf1", "val\ndice"]]


def test_a_site_without_a_class_does_not_change_the_order() -> None:
    some = {"test/dice": 0.5, "test/dice_b": 0.5}
    every = {"test/dice": 0.5, "test/dice_a": 0.5, "test/dice_b": 0.5}
    assert headings(A=some, B=every) == [["test\ndice", "test\ndice\na", "test\ndice\nb"]]


def test_distances_have_their_unit_in_the_heading() -> None:
    scores = {"test/hd95": 1.0, "test/asd_organ": 2.0, "test/hd95@global": 3.0, "test/asdf": 4.0}
    expected = ["test\nhd95\nmm", "test\nasd\norgan\nmm", "test\nhd95@global\nmm", "test\nasdf"]
    assert headings(A=scores) == [expected]
