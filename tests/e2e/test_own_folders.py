"""A run on Ray in a folder that has packages with the names of those of raysim."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import command
from tests.support.paths import ROOT

SMALL = ("rounds=1", "task.data.sites=2", "task.data.size=[16,16]", "task.data.cases=2", "--out", "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ditto", "algorithms/mine.py:Mine"])
def test_the_actors_use_the_algorithm_that_is_named(name: str, tmp_path: Path) -> None:
    own = tmp_path / "algorithms"
    own.mkdir()
    (own / "__init__.py").write_text("raise RuntimeError('the package of the user was imported')")
    (own / "mine.py").write_text((ROOT / "algorithms" / "ditto.py").read_text().replace("class Ditto", "class Mine"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = command("run", f"algorithm={name}", *SMALL)
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
