"""Rows of `raysim status`."""

from __future__ import annotations

import io

import pytest

from raysim.cli.status import COLUMNS, _cells, print_statuses
from raysim.distributed.control_actor import RunStatus
from raysim.reporting.terminal import Terminal

RUN = RunStatus(
    "a-search-over-the-sites-of-a-long-study-2f9c01",
    description="fedavg on segmentation",
    directory="/home/someone/studies/federated/runs/a-search-over-the-sites-of-a-long-study",
    host="node-17",
    done=3,
    total=20,
    state="running",
    metric="inside/val/dice/mean",
    value=0.8123,
    round_seconds=12.5,
)
ENDS = (RUN.name, f"node-17:{RUN.directory}")


def test_a_run_that_has_ended_has_no_host() -> None:
    assert _cells(RunStatus("a", directory="/runs/a"))[-1] == "/runs/a"
    assert _cells(RunStatus("a", directory="/runs/a", host="node"))[-1] == "node:/runs/a"


def printed(width: int, terminal: bool) -> list[str]:
    console = Terminal(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True, highlight=False)
    print_statuses([RUN, RunStatus("b", directory="/runs/b")], console)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("width", [40, 80, 300])
@pytest.mark.parametrize("terminal", [True, False])
def test_names_and_directories_are_in_one_line(terminal: bool, width: int, end: str) -> None:
    assert sum(end in line for line in printed(width, terminal)) == 1


def test_a_narrow_terminal_shows_a_block_for_each_run() -> None:
    first, second = "\n".join(printed(80, terminal=True)).strip().split("\n\n")
    assert [line.split("  ")[0] for line in first.splitlines()] == list(COLUMNS)
    assert "score        inside/val/dice/mean 0.8123" in first
    assert second.splitlines()[0] == "run          b"


def test_output_to_a_file_has_a_line_for_each_run() -> None:
    lines = printed(80, terminal=False)
    assert sum(bool(line.strip()) for line in lines) == 4  # titles, a rule, and two runs
