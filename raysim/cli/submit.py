"""`raysim submit`: a command as a job of a Ray cluster. It goes on without this terminal, and its results come back."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from raysim.cli import artifact_bundle
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.core.formatting import format_bytes
from raysim.data.file_paths import contains_secret
from raysim.storage.run_directory import runs_directory

COMMANDS = ("run", "resume", "tune", "doctor", "list", "status", "stop")
THERE = '"${RAYSIM_RUNS:-$HOME/runs}"'  # on the cluster: where runs go, as its shell finds it
OURS = ("raysim", "algorithms", "search_spaces", "tests")  # installed there; never sent
MOST = 20_000_000  # bytes that travel with a job
FIELD = "raysim_folder"  # of a job's metadata: the run's folder, as the cluster's shell writes it
LOOK, AGAIN = 30.0, 20  # seconds between two questions whether a job is still there; after so many it is heard anew
PATIENCE = 120.0  # seconds without an answer of the cluster, after which a job is no longer followed
NO_AGENT = "No available agent"  # what the dashboard says when the head's agent does not serve
SILENCE = (RuntimeError, OSError, aiohttp.ClientError)  # what Ray's client says when nobody answers it


@dataclass
class JobCommand:
    """What the cluster is asked: the words, and the run's folder over there as its shell writes it, if there is one."""

    words: list[str]
    folder: str = ""
    named: bool = False  # whether the words name the folder themselves

    @property
    def command(self) -> str:
        """For the cluster's shell."""
        out = f" --out {self.folder}" if self.folder and not self.named else ""
        return f"python -m raysim {' '.join(map(shlex.quote, self.words))}{out}"


def submit(words: Sequence[str], address: str | None, detach: bool, console: Console) -> int:
    """Start `raysim WORDS` on the cluster whose dashboard is at `address`, and follow it; its exit code.

    What the words name travels along: the -c file, a search space, and this folder's own modules.
    """
    if not words or words[0] not in COMMANDS:
        raise ConfigError(f"raysim submit needs a command: {', '.join(COMMANDS)}; as in raysim submit run rounds=5")
    if secret := next((word for word in words if contains_secret(word)), None):
        key = secret.partition("=")[0] if "=" in secret else "a word"
        raise ConfigError(f"{key} holds a password or a key, which would stand in the job's log; leave it out")
    job = f"raysim-{token_hex(4)}"
    sent = job_command(words, job)
    client = _client(address)
    with TemporaryDirectory() as held:
        _packed(sent, Path(held))
        width = {"COLUMNS": str(shutil.get_terminal_size().columns)}  # its tables are read here
        there = {"working_dir": held, "env_vars": width}
        how = {"submission_id": job, "runtime_env": there, "metadata": {FIELD: sent.folder}}
        with _answered(job):
            _begun(client, entrypoint=f"exec {sent.command}", **how)
    console.print(f"job {job}: raysim {' '.join(words)}", highlight=False, markup=False, soft_wrap=True)
    if detach:
        console.print(f"raysim submit --attach {job} follows it and fetches its results", highlight=False)
        return 0
    return attach(job, address, console)


def attach(job: str, address: str | None, console: Console) -> int:
    """Follow a job to its end, then fetch its run's folder into a new one under `runs_directory`; the job's exit code."""
    client = _client(address)
    try:
        with _answered(job):
            _check_known(client, job)
            status = _followed(client, job)
            info = client.get_job_info(job)
            folder = (info.metadata or {}).get(FIELD)
            found = _fetched(client, folder) if folder else ""
    except KeyboardInterrupt:
        console.print(
            f"\nthe job goes on: raysim submit --attach {job}; raysim submit stop RUN ends it, by the name that "
            "raysim submit status shows",
            highlight=False,
        )
        raise
    if artifact_bundle.BEGIN in found:
        target = _free(runs_directory(), job)
        artifact_bundle.unpack(found, target)
        console.print(f"its results are in {target}; its checkpoints stay on the cluster", highlight=False)
    failed = info.driver_exit_code or (0 if status == JobStatus.SUCCEEDED else 1)
    return 130 if status == JobStatus.STOPPED else int(failed)


def _check_known(client: Any, job: str) -> None:
    try:
        client.get_job_info(job)
    except RuntimeError as error:
        raise ConfigError(f"no job {job} on this cluster: {str(error).splitlines()[0]}") from error


def job_command(words: Sequence[str], job: str) -> JobCommand:
    """What is asked of the cluster. A folder that is named without its full path lies below the cluster's runs."""
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    option = "--resume" if "--resume" in split else "resume"
    if option == "--resume" or split[0] == "resume":
        folder = next(iter(split[split.index(option) + 1 :]), "")
        if not folder.startswith("/"):
            raise ConfigError(f"submit resume {folder}: give the folder's full path on the cluster")
        return JobCommand(split, shlex.quote(folder), named=True)
    if "--out" in split[:-1]:
        at = split.index("--out")
        out = split[at + 1]
        del split[at : at + 2]
        return JobCommand(split, shlex.quote(out) if out.startswith("/") else f"{THERE}/{shlex.quote(out)}")
    return JobCommand(split, f"{THERE}/{job}" if split[0] in ("run", "tune") else "")


@contextmanager
def _answered(job: str) -> Iterator[None]:
    try:
        yield
    except SILENCE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if NO_AGENT in said:
            raise PlacementError(
                f"the cluster takes no jobs: {said[:300]}; another Ray on the head's machine may hold the port of the "
                "agent that takes them: start the head with ray start --head --dashboard-agent-listen-port=0"
            ) from error
        raise PlacementError(
            f"the cluster no longer answers: {said[:300]}; what it has begun goes on: raysim submit --attach {job}"
        ) from error


def _client(address: str | None) -> JobSubmissionClient:
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # which sets its own level
    try:
        return JobSubmissionClient(address or "http://127.0.0.1:8265")
    except Exception as error:
        said = " ".join(str(error).split()).partition(". Ensure")[0].rstrip(".")
        cure = "is its dashboard forwarded to this machine (ray dashboard cluster/gpu.yaml), and its token here?"
        raise PlacementError(
            f"cannot reach the cluster at {address or 'http://127.0.0.1:8265'}: {said}; {cure}"
        ) from error


def _packed(sent: JobCommand, held: Path) -> None:
    """Copy into `held` the files that the words name, and this folder's own modules."""
    words = sent.words
    for i, word in enumerate(words):
        path = Path(word)
        if i and (words[i - 1] in ("-c", "--config") or path.suffix == ".py") and os.path.isfile(word):
            shutil.copy(path, held / path.name)
            words[i] = path.name
    said = " ".join([*words, *(path.read_text(errors="replace") for path in held.iterdir())])
    named = {module.partition(".")[0] for module in re.findall(r"([\w.]+):[A-Za-z_]\w*", said)}  # module:Class
    wanted = [path for path in Path().iterdir() if _is_module(path) or (path.name in named - {*OURS} and path.is_dir())]
    modules = [path for path in wanted if not (held / path.name).exists()]
    if (total := sum(map(_bytes, [*held.iterdir(), *modules]))) > MOST:
        raise ConfigError(
            f"the modules of {Path.cwd()} take {format_bytes(total)}; submit from a folder that has the run's own alone"
        )
    for path in modules:
        if path.is_dir():
            shutil.copytree(path, held / path.name, ignore=_left_out)
        else:
            shutil.copy(path, held)


def _is_module(path: Path) -> bool:
    return path.stem not in OURS and ((path / "__init__.py").is_file() or (path.suffix == ".py" and path.is_file()))


def _bytes(path: Path) -> int:
    """Of a file, or of all that would be copied of a folder; counted no further than what is too much."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, inner, names in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if name != "__pycache__"]
        total += sum(Path(folder, name).stat().st_size for name in names if Path(folder, name).is_file())
        if total > MOST:
            break
    return total


def _left_out(folder: str, names: list[str]) -> list[str]:
    """What does not travel: what Python made, and links to nothing."""
    return [name for name in names if name == "__pycache__" or not Path(folder, name).exists()]


def _begun(client: Any, **job: Any) -> str:
    """The job's name, once the cluster has taken it: a head that has just started has nobody yet who would."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > end:
                raise
        time.sleep(2)


def _free(folder: Path, name: str) -> Path:
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder / each for each in names if not (folder / each).exists())


def _followed(client: Any, job: str) -> Any:
    """Print what the job says until it ends; its status. A connection that is lost for a while is taken up again."""
    printed, lost = 0, 0.0  # characters; since when nobody answers

    async def printing() -> None:
        nonlocal printed, lost
        told = 0  # Ray tells all of it anew
        async for lines in client.tail_job_logs(job):
            print(lines[max(0, printed - told) :], end="", flush=True)
            told, lost = told + len(lines), 0.0
            printed = max(printed, told)

    while True:
        try:
            asyncio.run(_attended(printing(), client, job))
            status = client.get_job_status(job)
            if status.is_terminal():
                print(client.get_job_logs(job)[printed:], end="", flush=True)  # what a dead connection has kept back
                return status
        except SILENCE:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                raise
        else:
            lost = 0.0
        time.sleep(1)


async def _attended(printing: Coroutine[Any, Any, None], client: Any, job: str) -> None:
    """Wait for `printing`, but not for ever: nobody says that its connection is dead, so it is made anew at times."""
    task = asyncio.create_task(printing)
    try:
        for _ in range(AGAIN):
            if (await asyncio.wait({task}, timeout=LOOK))[0]:
                task.result()
                return
            if (await asyncio.to_thread(client.get_job_status, job)).is_terminal():
                return
    finally:
        task.cancel()


def _fetched(client: Any, folder: str) -> str:
    """The parcel of the run's folder: a job prints it, for a cluster gives nothing back but what jobs print.

    Nothing where the folder is not there.
    """
    job = _begun(client, entrypoint=f"test ! -d {folder} || exec python -m raysim.cli.artifact_bundle {folder}")
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.5)
    if status != JobStatus.SUCCEEDED:
        raise RunError(f"the results in {folder} could not be fetched: {client.get_job_logs(job)[-500:]}")
    return str(client.get_job_logs(job))
