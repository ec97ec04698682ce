"""The steps at the start of a run, and the tables at its end."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from raysim.core.events import ActorPlacement, ActorsPlaced, Progress, RunPlanned
from raysim.reporting.console import RunConsole, site_tables

PLACE = ActorPlacement("client-01", "client-01[A]", "node", 1, 1.0, 0.0, [], "cpu", 1)


def test_the_steps_of_the_start_are_printed_once_without_a_terminal() -> None:
    out = StringIO()
    console = RunConsole(Console(file=out, width=100))
    console.show(Progress(phase="preparing cases", done=1, total=2))
    console.show(RunPlanned(Path("run"), 2, "inside/val/dice"))
    for phase in ("starting", "starting the server", "starting client actors", "starting client actors"):
        console.show(Progress(phase=phase))
    for seconds in (1, 2):
        console.show(Progress(phase=f"requested 2 x 1 CPU: 1 nodes of at most 2, {seconds} s"))
    console.show(ActorsPlaced([PLACE], {"A": "client-01"}))
    console.show(Progress(round=0, phase="client", done=0, total=1))
    assert out.getvalue().splitlines()[:4] == [
        "starting the server",
        "starting client actors",
        "requested 2 x 1 CPU: 1 nodes of at most 2, 1 s",
        "1 site on 1 client actor; the data of each site are opened in the first round",
    ]
    assert len(out.getvalue().splitlines()) == 5


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
