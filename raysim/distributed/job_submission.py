"""Jobs of a Ray cluster, through its dashboard: submit a command, follow its output, fetch its run directory."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.distributed import artifact_bundle, ray_compat
from raysim.distributed.private_files import users_listening
from raysim.distributed.timeouts import (
    JOB_FETCH_TIMEOUT_S,
    JOB_REPLY_TIMEOUT_S,
    JOB_START_INTERVAL_S,
    JOB_STATUS_INTERVAL_S,
    POLL_INTERVAL_S,
)
from raysim.distributed.waiter import Waiter

DEFAULT_PORT = 8265
DEFAULT_ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"
DIRECTORY_FIELD = "raysim_folder"  # field of a job's metadata: the run directory, quoted for the cluster's shell
STATUS_CHECKS = 20  # status checks of a job after which its log stream is opened again
CONNECTION_ERRORS = (RuntimeError, OSError, aiohttp.ClientError)  # errors of Ray's client if the cluster does not reply


@dataclass(frozen=True)
class JobResult:
    """The result of a job: its exit code, and the bundle of its run directory, empty without one."""

    exit_code: int
    bundle: str


class ClusterJobs:
    """The jobs of the cluster whose dashboard is at `address`. Raises PlacementError if it cannot be reached."""

    def __init__(self, address: str | None) -> None:
        if address is None:
            _check_default_address()
        self.client = _connect(address or DEFAULT_ADDRESS)

    def submit(self, job: str, command: str, directory: str, working_dir: Path, environment: dict[str, str]) -> None:
        """Start `command` in a copy of `working_dir`. `directory` is its run directory on the cluster, or empty."""
        with _reported_errors(job):
            _start(
                self.client,
                entrypoint=f"exec {command}",
                submission_id=job,
                runtime_env={"working_dir": str(working_dir), "env_vars": environment},
                metadata={DIRECTORY_FIELD: directory},
            )

    def follow(self, job: str) -> JobResult:
        """Print the output of a job until it ends. Raises ConfigError if there is no such job."""
        with _reported_errors(job):
            _check_exists(self.client, job)
            status = follow_output(self.client, job)
            info = self.client.get_job_info(job)
            directory = (info.metadata or {}).get(DIRECTORY_FIELD)
            bundle = _fetch(self.client, directory) if directory else ""
        if status == JobStatus.STOPPED:
            return JobResult(130, bundle)
        return JobResult(int(info.driver_exit_code or (0 if status == JobStatus.SUCCEEDED else 1)), bundle)


def _check_default_address() -> None:
    """Raises PlacementError if another user serves the default port: the client would send the token to that user."""
    users = users_listening(DEFAULT_PORT)
    if users and not users & {os.getuid(), 0}:
        raise PlacementError(
            f"user {min(users)} of this machine serves {DEFAULT_ADDRESS}, where the forwarded dashboard is expected; "
            f"forward yours to another port, or give the address if you trust that user: --address {DEFAULT_ADDRESS}"
        )


def _connect(address: str) -> JobSubmissionClient:
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # Ray sets it to INFO
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        message = " ".join(str(error).split()).partition(". Ensure")[0].rstrip(".")
        cure = "forward its dashboard to this machine (ray dashboard cluster/gpu.yaml), and copy its token here"
        raise PlacementError(f"cannot reach the cluster at {address}: {message}; {cure}") from error


@contextmanager
def _reported_errors(job: str) -> Iterator[None]:
    """Raises PlacementError, with the cure, if the cluster does not answer in the block."""
    try:
        yield
    except CONNECTION_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if ray_compat.lacks_job_agent(error):
            raise PlacementError(
                f"the cluster accepts no jobs: {message[:300]}; another Ray on the head's machine may use the port of "
                "the job agent: start the head with ray start --head --dashboard-agent-listen-port=0"
            ) from error
        raise PlacementError(
            f"the cluster no longer answers: {message[:300]}; a started job continues: raysim submit --attach {job}"
        ) from error


def _check_exists(client: Any, job: str) -> None:
    try:
        client.get_job_info(job)
    except RuntimeError as error:
        raise ConfigError(f"no job {job} on this cluster: {str(error).splitlines()[0]}") from error


def _start(client: Any, **job: Any) -> str:
    """Submit a job and return its id. Retries until the cluster accepts it: the agent of a new head starts late."""
    waiter = Waiter(JOB_REPLY_TIMEOUT_S)
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if not ray_compat.lacks_job_agent(error) or waiter.expired:
                raise
        time.sleep(JOB_START_INTERVAL_S)


def follow_output(client: Any, job: str) -> Any:
    """Print the output of a job until it ends, and return its status. Reopens a lost connection without a gap.

    Raises the error of the connection if it stays lost for JOB_REPLY_TIMEOUT_S.
    """
    printed = 0  # characters
    silence: Waiter | None = None  # since the first connection error in a row

    async def print_output() -> None:
        nonlocal printed, silence
        received = 0  # Ray sends the output from its start
        async for lines in client.tail_job_logs(job):
            print(lines[max(0, printed - received) :], end="", flush=True)
            received, silence = received + len(lines), None
            printed = max(printed, received)

    while True:
        try:
            asyncio.run(_print_or_reconnect(print_output, client, job))
            status = client.get_job_status(job)
            if status.is_terminal():
                print(
                    client.get_job_logs(job)[printed:], end="", flush=True
                )  # output that a dead connection did not send
                return status
        except CONNECTION_ERRORS:
            silence = silence or Waiter(JOB_REPLY_TIMEOUT_S)
            if silence.expired:
                raise
        else:
            silence = None
        time.sleep(1)


async def _print_or_reconnect(print_output: Callable[[], Coroutine[Any, Any, None]], client: Any, job: str) -> None:
    """Print until the output ends. A dead connection raises no error, so the connection is closed after a while."""
    task = asyncio.create_task(print_output())
    try:
        for _ in range(STATUS_CHECKS):
            if (await asyncio.wait({task}, timeout=JOB_STATUS_INTERVAL_S))[0]:
                task.result()
                return
            if (await asyncio.to_thread(client.get_job_status, job)).is_terminal():
                return
    finally:
        task.cancel()


def _fetch(client: Any, directory: str) -> str:
    """The bundle of `directory`, printed by a job, because a cluster returns only output. Empty without a directory."""
    module = artifact_bundle.__name__
    job = _start(client, entrypoint=f"test ! -d {directory} || exec python -m {module} {directory}")
    waiter = Waiter(JOB_FETCH_TIMEOUT_S)
    while not (status := client.get_job_status(job)).is_terminal():
        if waiter.expired:
            raise RunError(
                f"the results in {directory} were not sent within {JOB_FETCH_TIMEOUT_S:g} s; they are kept on the "
                "cluster; to fetch them: raysim submit --attach JOB"
            )
        time.sleep(POLL_INTERVAL_S)
    if status != JobStatus.SUCCEEDED:
        raise RunError(f"the results in {directory} could not be fetched: {client.get_job_logs(job)[-500:]}")
    output = str(client.get_job_logs(job))
    return output if artifact_bundle.BEGIN in output else ""
