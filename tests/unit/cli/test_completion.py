"""Completion of keys and names."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from raysim.cli.completion import complete_keys
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("ro", ["rounds="]),
        ("task=t", ["task=tabular"]),
        ("algorithm=fedp", ["algorithm=fedprox"]),
        ("algorithm=fedprox algorithm.m", ["algorithm.momentum=", "algorithm.mu="]),
        ("algorithm=my:Own algorithm.m", []),
        ("task=tabular task.data.sta", ["task.data.standardise="]),
        ("task.data.sev", ["task.data.severity="]),
    ],
)
def test_the_keys_of_the_task_and_the_algorithm_of_the_line(line: str, completions: list[str]) -> None:
    *given, prefix = line.split()
    assert complete_keys(prefix, Namespace(keys=given)) == completions


def test_the_shell_gets_commands_and_keys(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    code = "import sys; from raysim.cli.main import main; sys.argv[0] = 'raysim'; main()"
    for line, completions in (
        ("raysim sta", "status "),
        ("raysim run algorithm=fedprox algorithm.mu", "algorithm.mu="),
    ):
        shell = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash"}
        shell |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}"}
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **shell}, check=True)
        assert (tmp_path / "out").read_text() == completions
