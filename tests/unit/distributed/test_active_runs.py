"""The status of a run, read from its files, and refusals to stop a run that is not active on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.distributed.active_runs import directory_status, local_statuses, stop_local_run
from raysim.distributed.control_actor import RunStatus
from raysim.storage.run_directory import exclusive_lock


def test_a_run_is_shown_by_its_files(tmp_path: Path) -> None:
    assert directory_status(tmp_path).state == "not started"
    (tmp_path / "config.yaml").write_text("{algorithm: {name: fedavg}, task: {name: toy}, rounds: 9}")
    rows = [json.dumps([{"round": number, "loss": 1 / number, "seconds": 0.5}, []]) for number in (1, 2)]
    (tmp_path / "log.jsonl").write_text("\n".join([*rows, '[{"round": 3']))  # the last line is torn by a crash
    early = directory_status(tmp_path)
    assert early == RunStatus(
        name=tmp_path.name,
        description="fedavg on toy",
        directory=str(tmp_path),
        done=2,
        total=9,
        state="ended early",
        metric="loss",
        value=0.5,
        round_seconds=0.5,
    )
    (tmp_path / "summary.json").write_text('{"status": "interrupted"}')
    assert directory_status(tmp_path).state == "interrupted"


def test_only_active_runs_are_listed_and_stopped(tmp_path: Path) -> None:
    for name in ("active", "ended"):
        (tmp_path / name).mkdir()
    with exclusive_lock(tmp_path / "active"):
        (listed,) = local_statuses(tmp_path, directory_status)
        assert listed.name == "active"
        assert (listed.state, listed.description) == (f"being set up, process {os.getpid()}", "")
        (tmp_path / "active" / "config.yaml").write_text("{algorithm: {name: fedavg}, task: {name: toy}, rounds: 9}")
        assert directory_status(tmp_path / "active").state == f"starting, process {os.getpid()}"
        (tmp_path / "active" / "log.jsonl").write_text('[{"round": 1, "loss": 1, "seconds": 1}, []]\n')
        assert directory_status(tmp_path / "active").state == f"running, process {os.getpid()}"
        (tmp_path / "active" / ".process").write_text('{"pid": 1, "host": "elsewhere"}')
        with pytest.raises(ConfigError, match="runs on elsewhere: stop it on that machine, or by its name"):
            stop_local_run(tmp_path / "active")
    with pytest.raises(ConfigError, match="no process runs in"):
        stop_local_run(tmp_path / "ended")
