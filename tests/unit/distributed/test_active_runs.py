"""The status of a run, read from its files, and refusals to stop a run that is not active on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.distributed.active_runs import directory_status, local_statuses, stop_local_run
from raysim.distributed.control_actor import RunStatus
from raysim.storage.run_directory import exclusive_lock, lock_owner


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


@pytest.mark.parametrize("line", ["7", "[]", '{"a": 1}', '[{"loss": 1}]'])
def test_odd_files_of_a_run_show_as_a_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f"{line}\n")
    (tmp_path / "summary.json").write_text(line)
    for config in ("algorithm: [1]", "- 1", "!x 1", "a: &a [*a]", "\x1b", "algorithm: {name: 3}"):
        (tmp_path / "config.yaml").write_text(config)
        assert directory_status(tmp_path).done == 0


@pytest.mark.parametrize("odd", ["x", [1], {}, 10**400], ids=str)
def test_an_odd_loss_is_not_shown(odd: object, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps([{"round": 3, "loss": odd, "seconds": odd}, []]) + "\n")
    status = directory_status(tmp_path)
    assert (status.done, status.value, status.round_seconds) == (3, None, None)


def wait_for_lock(directory: Path) -> None:
    while lock_owner(directory) is None:
        time.sleep(0.01)


LOCK = """
import sys, time
from pathlib import Path
from raysim.storage.run_directory import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    time.sleep(60)
"""


@pytest.mark.parametrize("forged", ["own", 0, -1, 10**30, "x", None])
def test_only_the_process_that_holds_the_lock_is_stopped(forged: object, tmp_path: Path) -> None:
    """The directory names another process: this one, all processes, or none."""
    with exclusive_lock(tmp_path):
        other = subprocess.Popen(["sleep", "60"])
        pid = other.pid if forged == "own" else forged
        (tmp_path / ".process").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
        with pytest.raises(ConfigError, match=r"names process .* must hold this lock"):
            stop_local_run(tmp_path)
        assert other.poll() is None
        other.kill()
        other.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a directory of another user")
def test_a_process_of_another_user_than_the_directorys_is_not_stopped(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path):  # this process, which must survive
        os.chown(tmp_path, 12345, 12345)
        with pytest.raises(ConfigError, match="but a process of user 12345, who owns the directory"):
            stop_local_run(tmp_path)


def test_the_process_that_holds_the_lock_is_stopped(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)]) as process:
        wait_for_lock(tmp_path)
        stop_local_run(tmp_path)
        assert process.wait(10) == -signal.SIGTERM
