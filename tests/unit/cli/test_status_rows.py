"""Rows of `raysim status`."""

from __future__ import annotations

from raysim.cli.status import _cells
from raysim.distributed.control_actor import RunStatus


def test_a_run_that_has_ended_has_no_host() -> None:
    assert _cells(RunStatus("a", directory="/runs/a"))[-1] == "/runs/a"
    assert _cells(RunStatus("a", directory="/runs/a", host="node"))[-1] == "node:/runs/a"
