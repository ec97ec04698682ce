"""The directory of a run: reserved at planning, filled when the actors are placed, and locked during the run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raysim.core.atomic_io import write_json, write_text
from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, quote_path

if TYPE_CHECKING:  # importing events imports torch, which is slow
    from raysim.core.events import ActorsPlaced

# In a run directory:
LOG_FILE, FAILURES_FILE, SUMMARY_FILE, CHECKPOINTS = "log.jsonl", "failures.jsonl", "summary.json", "checkpoints"
BEST = "best"  # the checkpoint of the best round
CONFIG_FILE, CASES_FILE = "config.yaml", "cases.parquet"
SEEDS_FILE = "seeds.yaml"  # in the directory of `raysim run --seeds`: the seeds, and the configuration
SEARCH_FILE = "search.yaml"  # in the directory of a search: its request
INITIAL_WEIGHTS_FILE = "initial_weights.safetensors"  # the copy of the initial weights of the task's network
CONTINUED_FILE = "continued.json"  # the run that this one continues
LOCK_FILE = ".process"  # in a run directory: the process that holds its lock
RUNS_VARIABLE = "RAYSIM_RUNS"  # environment variable with the parent of new run directories; default ./runs


def check_new_directory(out: str | None, kind: str) -> None:
    """Raises ConfigError if `out` is a URL or exists. `kind` is "a run" or "a search"."""
    if out is not None and "://" in out:
        raise ConfigError(
            f"--out {out}: {kind} is written to a folder, not to a URL; use a local or mounted folder and copy it "
            "afterwards"
        )
    if out is not None and Path(out).exists():
        raise ConfigError(f"--out {out} already exists, and {kind} never overwrites files; choose a new folder")


def check_new_file(out: Path) -> None:
    """Raises ConfigError if `out` exists, or if its folder does not."""
    if out.exists():
        raise ConfigError(f"--out {out} already exists, and no file is overwritten; choose a new name")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: {out.parent} is not a folder; create it, or choose another one")


def check_run_directory(directory: Path) -> None:
    """Raises ConfigError if `directory` is not the directory of a run."""
    if not (directory / CONFIG_FILE).is_file():
        advice = describe_collection(directory) or "give a directory in runs/"
        raise ConfigError(f"{directory} is not a run directory: it has no {CONFIG_FILE}; {advice}")


def describe_collection(directory: Path) -> str:
    """The advice to give one of the runs in a directory of several seeds or of a search; empty for another folder."""
    if (directory / SEEDS_FILE).is_file():
        return f"it has a run for each seed; give one of them, such as {quote_path(directory)}/seed-0"
    if (directory / SEARCH_FILE).is_file():
        return f"it has the trials of a search; give one of them, such as {quote_path(directory)}/trials/0001"
    return ""


@contextmanager
def reserve_directory(out: str | None, stem: str) -> Iterator[Path]:
    """A new, empty directory: `out`, or the first unused one of STEM-001, STEM-002, ... under `runs_directory()`.

    If it is still empty at the end of the block, it is removed, so that a refused run leaves no files.
    Raises ConfigError if `out` exists or cannot be created.
    """
    made: list[Path] = []
    try:
        folder = _make(Path(out).absolute(), made) if out is not None else _next_free(stem, made)
    except OSError as error:
        if isinstance(error, FileExistsError) and error.filename == str(Path(str(out)).absolute()):
            raise ConfigError(
                f"--out {out} already exists, and a run never overwrites files; choose a new folder"
            ) from error
        raise ConfigError(f"cannot create the run directory {error.filename}: {error.strerror}") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # the directory or a parent is not empty
            for empty in made:
                empty.rmdir()


def runs_directory() -> Path:
    """The parent of run directories without --out: RAYSIM_RUNS, or ./runs. Raises ConfigError for a URL."""
    given = os.environ.get(RUNS_VARIABLE) or "runs"
    if "://" in given:
        raise ConfigError(
            f"{RUNS_VARIABLE}={given}: runs are written to a folder, not to a URL; use a local or mounted folder"
        )
    return Path(given).expanduser().absolute()


def _next_free(stem: str, made: list[Path]) -> Path:
    for number in count(1):
        with suppress(FileExistsError):
            return _make(runs_directory() / f"{stem.replace(':', '.')}-{number:03}", made)
    raise AssertionError("unreachable: count() is infinite")


def _make(folder: Path, made: list[Path]) -> Path:
    """Create `folder` and its missing parents. All created folders are added to `made`, the deepest first."""
    missing = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made += missing
    folder.mkdir()
    made.insert(0, folder)
    return folder


def commit(directory: Path, config: Mapping[str, Any], environment: Mapping[str, Any], placement: ActorsPlaced) -> None:
    """Fill the directory of a run that starts: config.yaml, env.json, checkpoints/ and placement.json.

    When a run is resumed, or its actors have moved, only placement.json changes.
    """
    text = yaml.safe_dump(config, sort_keys=False)  # before anything is written, because it may fail
    (directory / CHECKPOINTS).mkdir(exist_ok=True)
    if not (directory / CONFIG_FILE).exists():
        write_json(directory / "env.json", environment)
        write_text(directory / CONFIG_FILE, text)
    places = {place.actor: asdict(place) for place in placement.places}
    sites = sorted(placement.site_to_actor.items())
    write_json(directory / "placement.json", [{"site": s, **places.get(a, {"actor": a})} for s, a in sites])


def remove_content(directory: Path) -> None:
    """Remove all files of a run except its lock, which is removed when it is released."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def read_summary(directory: Path) -> dict[str, Any]:
    """The content of summary.json; empty if the run has not ended or the file cannot be read."""
    return read_mapping(directory / SUMMARY_FILE)


@contextmanager
def reading_runs(directories: Sequence[Path]) -> Iterator[None]:
    """Raises ConfigError that names the directories if the files of a run have content that raysim does not write."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the files in {join_names(directories)} cannot be read ({type(error).__name__}: {reason:.200}): they are "
            "damaged, or of another version of raysim; restore them, or give other runs"
        ) from error


def read_environment(directory: Path) -> dict[str, Any]:
    """The content of env.json; empty if the file cannot be read."""
    return read_mapping(directory / "env.json")


def read_continued(directory: Path) -> dict[str, Any]:
    """The run that the run in `directory` continues, with the round and the difference; empty if there is none."""
    return read_mapping(directory / CONTINUED_FILE)


def read_mapping(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file cannot be read or has other content."""
    with suppress(OSError, ValueError, RecursionError):
        # A named pipe would block.
        if path.is_file() and isinstance(value := json.loads(path.read_text()), dict):
            return value
    return {}


def has_checkpoint(directory: Path) -> bool:
    """Whether the run in `directory` has a complete checkpoint."""
    return any((directory / CHECKPOINTS).glob("round_*"))


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder` during the block. Raises ConfigError if another process holds it."""
    owner = folder / LOCK_FILE
    try:
        handle = _open_locked(owner)
    except BlockingIOError as error:
        cure = f"wait until it ends, or run: raysim stop {quote_path(folder)}"
        raise ConfigError(f"another process is using {folder}; {cure}") from error
    try:
        with suppress(OSError):  # the disk is full; only `raysim stop` reads this content
            os.truncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        owner.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path) -> int:
    """The file, open and locked until the process ends. A lock on a directory is not shared between hosts on NFS."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        with suppress(FileNotFoundError):  # the previous owner may have removed it in the meantime
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def lock_owner(folder: Path) -> dict[str, Any] | None:
    """The process that holds the lock of a run directory, or None.

    The result has `pid` and `host`; it is empty if the process could not write them.
    """
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:  # the file does not exist, or only its owner may read it
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return read_mapping(folder / LOCK_FILE)
    finally:
        os.close(handle)
