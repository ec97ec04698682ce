"""Submitted jobs: the command that the cluster gets, and output that survives a lost connection."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from raysim.cli.main import main
from raysim.core.errors import ConfigError, PlacementError
from raysim.distributed import job_submission


class Jobs:
    """A client of a cluster that loses its connection twice during the output of a job."""

    def __init__(self) -> None:
        self.tails = 0

    async def tail_job_logs(self, job: str) -> Any:
        self.tails += 1
        for number, line in enumerate(["one\n", "two\n", "three\n"]):
            if number == self.tails:
                raise RuntimeError("connection lost")
            yield line

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.SUCCEEDED

    def get_job_logs(self, job: str) -> str:
        return "one\ntwo\nthree\nfour\n"


def test_a_lost_connection_to_a_job_is_reopened_without_a_gap(capsys: pytest.CaptureFixture[str]) -> None:
    from raysim.distributed.job_submission import follow_output

    jobs = Jobs()
    assert follow_output(jobs, "job") == JobStatus.SUCCEEDED
    assert jobs.tails == 3
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_submit_sends_the_command_and_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from raysim.cli.submit import RUNS_ON_CLUSTER, JobCommand, copy_files, job_command

    monkeypatch.chdir(tmp_path)

    assert job_command(["run", "rounds=2"], "job").directory == f"{RUNS_ON_CLUSTER}/job"
    assert job_command(["run", "--out=a b"], "job").command == f"python -m raysim run --out {RUNS_ON_CLUSTER}/'a b'"
    assert job_command(["tune", "fedsm", "--out", "/shared/x"], "job").directory == "/shared/x"
    resumed = job_command(["tune", "--resume", "/shared/x"], "job")
    assert (resumed.directory, resumed.command) == ("/shared/x", "python -m raysim tune --resume /shared/x")
    assert job_command(["doctor"], "job").directory == ""
    long = JobCommand(["run", "-c", f"{'x' * 300}.yaml"])
    copy_files(long, tmp_path)  # a name that is too long for a file is not a connection error
    assert long.arguments[2].startswith("xxx")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").touch()
    (tmp_path / "held").mkdir()
    copy_files(JobCommand(["run", "algorithm=methods.mine:Mine"]), tmp_path / "held")
    assert (tmp_path / "held" / "methods" / "mine.py").exists()  # a folder that is not a package is sent if it is named
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "mine.py").touch()
    (tmp_path / "sent").mkdir()
    copy_files(JobCommand(["run", "algorithm=algorithms/mine.py:Mine"]), tmp_path / "sent")
    assert (tmp_path / "sent" / "algorithms" / "mine.py").exists()
    for arguments in (["resume", "runs/x"], ["tune", "--resume=x"]):
        with pytest.raises(ConfigError, match="full path"):
            job_command(arguments, "job")
    for secret in ("run", "tune"):
        assert main(["submit", secret, "task.data.table=https://me:word@host/t.csv"]) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can listen as another user")
def test_the_default_address_is_not_used_if_another_user_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    os.seteuid(65534)
    server = socket.create_server(("127.0.0.1", 0))
    os.seteuid(0)
    with server:
        port = server.getsockname()[1]
        monkeypatch.setattr(job_submission, "DEFAULT_PORT", port)
        monkeypatch.setattr(job_submission, "DEFAULT_ADDRESS", f"http://127.0.0.1:{port}")
        with pytest.raises(PlacementError, match=f"user 65534 of this machine serves http://127.0.0.1:{port}, where"):
            job_submission.ClusterJobs(None)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected, so no token was sent
            server.accept()
