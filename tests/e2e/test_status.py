"""Watching runs from outside: status, stop, metrics at the port of a node. Real commands, real Ray."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.commands import done, playing, until

pytestmark = pytest.mark.timeout(300)


LONG = (
    *("rounds=100000", "task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2", "resources.client_actors=2"),
)


def test_a_run_of_this_machine_is_found_by_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    words = (*LONG[:-1], "backend=local", "--out", str(out))
    with playing(*words) as run:
        assert until(lambda: run.poll() is not None or (out / "log.jsonl").exists())
        assert re.search(r"first +fedavg on synthetic", done("status", cwd=tmp_path).stdout)
        ended = done("stop", "runs/first", cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, "runs/first has ended"), ended.stderr
        run.communicate(timeout=60)
        assert run.returncode == 130
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert done("stop", "runs/first", cwd=tmp_path).returncode == 2
    assert not (out / ".process").exists()
