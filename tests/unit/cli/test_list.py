"""`raysim list`: names with descriptions; algorithms by group."""

from __future__ import annotations

import pytest

from raysim.cli.main import main
from raysim.core.registry import GROUPS, algorithm_groups, tasks


def test_algorithms_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "algorithms"]) == 0
    first = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    groups = [group.split(" ")[0] for group in GROUPS]
    expected = [name for group, names in algorithm_groups().items() for name in (group.split(" ")[0], *names)]
    assert [name for name in first if name != "To"] == expected
    assert [name for name in first if name in groups] == groups


def test_tasks_have_no_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tasks"]) == 0
    assert [line.split(" ")[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()] == [*tasks(), "To"]
