"""`raysim submit`: a command as a job of a Ray cluster. It goes on without this terminal, and its results come back."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from raysim import parcel
from raysim.data.wording import size
from raysim.errors import ConfigError, PlacementError, RunError
from raysim.folder import runs

COMMANDS = ("run", "resume", "doctor", "tune", "list")
THERE = '"${RAYSIM_RUNS:-$HOME/runs}"'  # on the cluster: where runs go, as its shell finds it
OURS = ("raysim", "algorithms", "search_spaces", "tests")  # installed there; never sent
MOST = 20_000_000  # bytes that travel with a job
FIELD = "raysim_folder"  # of a job's metadata: the run's folder, as the cluster's shell writes it


def submit(words: Sequence[str], address: str | None, detach: bool, console: Console) -> int:
    """Start `raysim WORDS` on the cluster whose dashboard is at `address`, and follow it; its exit code.

    What the words name travels along: the -c file, a search space, and this folder's own modules.
    """
    if not words or words[0] not in COMMANDS:
        raise ConfigError(f"raysim submit needs a command: {', '.join(COMMANDS)}; as in raysim submit run rounds=5")
    client, job = _client(address), f"raysim-{token_hex(4)}"
    with TemporaryDirectory() as held:
        sent, folder = _sent(list(words), Path(held), job)
        command = " ".join([*map(shlex.quote, sent), *([f"--out {folder}"] if folder and "--out" not in words else [])])
        client.submit_job(
            entrypoint=f"exec python -m raysim {command}",
            submission_id=job,
            runtime_env={"working_dir": held},
            metadata={FIELD: folder},
        )
    console.print(f"job {job}: raysim {' '.join(words)}", highlight=False, markup=False, soft_wrap=True)
    if detach:
        console.print(f"raysim submit --attach {job} follows it and fetches its results", highlight=False)
        return 0
    return attach(job, address, console)


def attach(job: str, address: str | None, console: Console) -> int:
    """Follow a job to its end, then fetch its run's folder into a new one under `runs`; the job's exit code."""
    client = _client(address)
    try:
        status = _followed(client, job)
        info = client.get_job_info(job)
    except RuntimeError as error:
        raise ConfigError(f"no job {job} on this cluster: {str(error).splitlines()[0]}") from error
    except KeyboardInterrupt:
        console.print(
            f"\nthe job goes on: raysim submit --attach {job}; to end it: ray job stop {job}", highlight=False
        )
        raise
    if folder := (info.metadata or {}).get(FIELD):
        target = runs() / job
        parcel.unpack(_fetched(client, folder), target)
        console.print(f"its results are in {target}; its checkpoints stay on the cluster", highlight=False)
    failed = info.driver_exit_code or (0 if status == JobStatus.SUCCEEDED else 1)
    return 130 if status == JobStatus.STOPPED else int(failed)


def _client(address: str | None) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address or "http://127.0.0.1:8265")
    except Exception as error:
        said = " ".join(str(error).split()).partition(". Ensure")[0].rstrip(".")
        cure = "is its dashboard forwarded to this machine (ray dashboard cluster/gpu.yaml), and its token here?"
        raise PlacementError(
            f"cannot reach the cluster at {address or 'http://127.0.0.1:8265'}: {said}; {cure}"
        ) from error


def _sent(words: list[str], held: Path, job: str) -> tuple[list[str], str]:
    """The words with the files that they name copied into `held`, and the run's folder over there, empty if none."""
    folder = f"{THERE}/{job}" if words[0] in ("run", "tune") else ""
    for i, word in enumerate(words):
        path = Path(word)
        if i and words[i - 1] == "--out":
            folder = shlex.quote(word)
        elif i and path.is_file() and (words[i - 1] in ("-c", "--config") or path.suffix == ".py"):
            shutil.copy(path, held / path.name)
            words[i] = path.name
    for path in Path().iterdir():
        if path.stem not in OURS and path.suffix == ".py" and not (held / path.name).exists():
            shutil.copy(path, held)
        elif path.name not in OURS and (path / "__init__.py").is_file():
            shutil.copytree(path, held / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    if (total := sum(path.stat().st_size for path in held.rglob("*"))) > MOST:
        raise ConfigError(
            f"the modules of {Path.cwd()} take {size(total)}; submit from a folder that has the run's own alone"
        )
    return words, folder


def _followed(client: Any, job: str) -> Any:
    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    while True:
        asyncio.run(follow())
        if (status := client.get_job_status(job)).is_terminal():
            return status
        time.sleep(1)  # the connection was lost, not the job


def _fetched(client: Any, folder: str) -> str:
    """The parcel of the run's folder: a job prints it, for a cluster gives nothing back but what jobs print."""
    job = client.submit_job(entrypoint=f"test ! -d {folder} || exec python -m raysim.parcel {folder}")
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.5)
    if status != JobStatus.SUCCEEDED:
        raise RunError(f"the results in {folder} could not be fetched: {client.get_job_logs(job)[-500:]}")
    return str(client.get_job_logs(job))
