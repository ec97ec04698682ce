"""`raysim submit`: runs a command as a job of a Ray cluster, follows its output and fetches its results."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

from rich.console import Console

from raysim.core.errors import ConfigError
from raysim.core.formatting import format_bytes
from raysim.data.file_paths import contains_secret
from raysim.distributed.artifact_bundle import unpack
from raysim.distributed.job_submission import ClusterJobs
from raysim.storage.run_directory import runs_directory

COMMANDS = ("run", "resume", "tune", "doctor", "list", "status", "stop")
RUNS_ON_CLUSTER = '"${RAYSIM_RUNS:-$HOME/runs}"'  # the runs directory, expanded by the cluster's shell
INSTALLED = ("raysim", "algorithms", "search_spaces", "tests")  # installed on the cluster, so never sent
MAX_SENT_BYTES = 20_000_000


@dataclass
class JobCommand:
    """The arguments of a command, and its run directory on the cluster, quoted for the shell; empty without one."""

    arguments: list[str]
    directory: str = ""
    names_directory: bool = False  # whether the arguments contain the directory

    @property
    def command(self) -> str:
        """The line for the cluster's shell."""
        out = f" --out {self.directory}" if self.directory and not self.names_directory else ""
        return f"python -m raysim {' '.join(map(shlex.quote, self.arguments))}{out}"


def submit(arguments: Sequence[str], address: str | None, detach: bool, console: Console) -> int:
    """Start `raysim ARGUMENTS` on the cluster whose dashboard is at `address`, and follow it. Returns its exit code.

    Sends the files that the arguments name (the -c file, a search space) and the Python modules of this directory.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise ConfigError(
            f"raysim submit needs a command: {', '.join(COMMANDS)}; for example: raysim submit run rounds=5"
        )
    if secret := next((argument for argument in arguments if contains_secret(argument)), None):
        key = secret.partition("=")[0] if "=" in secret else "an argument"
        raise ConfigError(f"{key} contains a password or an access key, which the job's log would show; remove it")
    job = f"raysim-{token_hex(4)}"
    command = job_command(arguments, job)
    cluster = ClusterJobs(address)
    with TemporaryDirectory() as working_dir:
        copy_files(command, Path(working_dir))
        width = {"COLUMNS": str(shutil.get_terminal_size().columns)}  # tables as wide as this terminal
        cluster.submit(job, command.command, command.directory, Path(working_dir), width)
    console.print(f"job {job}: raysim {' '.join(arguments)}", highlight=False, markup=False, soft_wrap=True)
    if detach:
        console.print(f"to follow it and fetch its results: raysim submit --attach {job}", highlight=False)
        return 0
    return _follow(cluster, job, console)


def attach(job: str, address: str | None, console: Console) -> int:
    """Follow a job to its end, fetch its run into a new directory below the runs directory, return its exit code."""
    return _follow(ClusterJobs(address), job, console)


def _follow(cluster: ClusterJobs, job: str, console: Console) -> int:
    try:
        result = cluster.follow(job)
    except KeyboardInterrupt:
        console.print(
            f"\nthe job continues; to follow it: raysim submit --attach {job}; to end it: raysim submit stop RUN "
            "(raysim submit status shows the name)",
            highlight=False,
        )
        raise
    if result.bundle:
        target = _free_path(runs_directory(), job)
        unpack(result.bundle, target)
        console.print(f"results: {target}; the checkpoints stay on the cluster", highlight=False)
    return result.exit_code


def job_command(arguments: Sequence[str], job: str) -> JobCommand:
    """The command for the cluster. A relative --out is below the cluster's runs directory.

    Raises ConfigError if the directory to resume is not a full path.
    """
    split = [part for arg in arguments for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    option = "--resume" if "--resume" in split else "resume"
    if option == "--resume" or split[0] == "resume":
        directory = next(iter(split[split.index(option) + 1 :]), "")
        if not directory.startswith("/"):
            raise ConfigError(
                f"cannot resume {directory or 'without a directory'}: expected the full path of the directory on the "
                "cluster, such as /shared/runs/first"
            )
        return JobCommand(split, shlex.quote(directory), names_directory=True)
    if "--out" in split[:-1]:
        at = split.index("--out")
        out = split[at + 1]
        del split[at : at + 2]
        return JobCommand(split, shlex.quote(out) if out.startswith("/") else f"{RUNS_ON_CLUSTER}/{shlex.quote(out)}")
    return JobCommand(split, f"{RUNS_ON_CLUSTER}/{job}" if split[0] in ("run", "tune") else "")


def copy_files(command: JobCommand, target: Path) -> None:
    """Copy into `target` the files that the arguments name, and the Python modules of this directory."""
    arguments = command.arguments
    for i, argument in enumerate(arguments):
        path = Path(argument)
        if i and (arguments[i - 1] in ("-c", "--config") or path.suffix == ".py") and os.path.isfile(argument):
            shutil.copy(path, target / path.name)
            arguments[i] = path.name
    text = " ".join([*arguments, *(path.read_text(errors="replace") for path in target.iterdir())])
    named = {module.partition(".")[0] for module in re.findall(r"([\w.]+):[A-Za-z_]\w*", text)}  # module:Class
    needed = [
        path for path in Path().iterdir() if _is_module(path) or (path.name in named - {*INSTALLED} and path.is_dir())
    ]
    modules = [path for path in needed if not (target / path.name).exists()]
    modules += _named_files(text)
    if (total := sum(map(_size, [*target.iterdir(), *modules]))) > MAX_SENT_BYTES:
        raise ConfigError(
            f"the modules in {Path.cwd()} have {format_bytes(total)}, more than {format_bytes(MAX_SENT_BYTES)}; submit "
            "from a folder that contains only the modules of this run"
        )
    for path in modules:
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=_ignored)
        else:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path)


def _named_files(text: str) -> list[Path]:
    """The files in folders that `text` names as folder/file.py:Class. A path outside this directory is not sent."""
    paths = {Path(name) for name in re.findall(r"([\w./-]+\.py):[A-Za-z_]\w*", text)}
    return sorted(
        path for path in paths if len(path.parts) > 1 and path.is_file() and not {"/", ".."} & set(path.parts)
    )


def _is_module(path: Path) -> bool:
    if path.stem in INSTALLED:
        return False
    return (path / "__init__.py").is_file() or (path.suffix == ".py" and path.is_file())


def _size(path: Path) -> int:
    """The bytes of a file, or of the files of a directory that would be copied; stops soon after MAX_SENT_BYTES."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for directory, subdirectories, names in os.walk(path, followlinks=True):
        subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
        total += sum(Path(directory, name).stat().st_size for name in names if Path(directory, name).is_file())
        if total > MAX_SENT_BYTES:
            break
    return total


def _ignored(directory: str, names: list[str]) -> list[str]:
    """The names that are not sent: compiled code, and broken links."""
    return [name for name in names if name == "__pycache__" or not Path(directory, name).exists()]


def _free_path(parent: Path, name: str) -> Path:
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(parent / each for each in names if not (parent / each).exists())
