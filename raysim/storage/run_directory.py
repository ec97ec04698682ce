"""The directory of a run: reserved when the run is planned, filled when its actors are placed, locked while it runs."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raysim.core.atomic_io import write_json, write_text
from raysim.core.errors import ConfigError

if TYPE_CHECKING:  # events import torch, which a refused command does without
    from raysim.core.events import ActorsPlaced

# In a run directory:
LOG_FILE, FAILURES_FILE, SUMMARY_FILE, CHECKPOINTS = "log.jsonl", "failures.jsonl", "summary.json", "checkpoints"
LOCK_FILE = ".process"  # in a run directory: the process that works there
RUNS_VARIABLE = "RAYSIM_RUNS"  # environment variable: the parent of new run directories, instead of ./runs


def check_new_directory(out: str | None, kind: str) -> None:
    """Raises ConfigError if `out` is a URL or exists. `kind` names what will be written there: a run, a search."""
    if out is not None and "://" in out:
        raise ConfigError(f"--out {out}: {kind} writes into a folder; give one that is mounted, and copy it afterwards")
    if out is not None and Path(out).exists():
        raise ConfigError(f"--out {out} exists already, and {kind} never overwrites another; choose a new one")


@contextmanager
def reserve_directory(out: str | None, stem: str) -> Iterator[Path]:
    """A new, empty directory: `out`, or the first free of STEM-001, STEM-002, ... under `runs_directory()`.

    If it is still empty at the end of the block, it is removed: a refused run leaves nothing behind.
    Raises ConfigError if `out` exists or cannot be made.
    """
    made: list[Path] = []
    try:
        folder = _make(Path(out).absolute(), made) if out is not None else _next_free(stem, made)
    except OSError as error:
        if isinstance(error, FileExistsError) and error.filename == str(Path(str(out)).absolute()):
            raise ConfigError(f"--out {out} exists, and a run never overwrites another; choose a new folder") from error
        raise ConfigError(f"cannot make the run's folder {error.filename}: {error.strerror}") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty, and so are its parents
            for empty in made:
                empty.rmdir()


def runs_directory() -> Path:
    """The parent of run directories that are not named: RAYSIM_RUNS, or ./runs. Raises ConfigError for a URL."""
    given = os.environ.get(RUNS_VARIABLE) or "runs"
    if "://" in given:
        raise ConfigError(f"{RUNS_VARIABLE}={given}: runs are written into a folder; give one that is mounted")
    return Path(given).expanduser().absolute()


def _next_free(stem: str, made: list[Path]) -> Path:
    for number in count(1):
        with suppress(FileExistsError):
            return _make(runs_directory() / f"{stem.replace(':', '.')}-{number:03}", made)
    raise AssertionError("numbers do not end")


def _make(folder: Path, made: list[Path]) -> Path:
    """Make `folder` and its missing parents. All that was made is added to `made`, the deepest first."""
    missing = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made += missing
    folder.mkdir()
    made.insert(0, folder)
    return folder


def commit(directory: Path, config: Mapping[str, Any], environment: Mapping[str, Any], placement: ActorsPlaced) -> None:
    """Fill the directory of a run that starts: config.yaml, env.json, checkpoints/ and placement.json.

    In a run that was resumed, or whose actors have moved, only placement.json changes.
    """
    (directory / CHECKPOINTS).mkdir(exist_ok=True)
    if not (directory / "config.yaml").exists():
        write_json(directory / "env.json", environment)
        write_text(directory / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    places = {place.actor: asdict(place) for place in placement.places}
    sites = sorted(placement.site_to_actor.items())
    write_json(directory / "placement.json", [{"site": s, **places.get(a, {"actor": a})} for s, a in sites])


def read_summary(directory: Path) -> dict[str, Any]:
    """The content of summary.json; empty if the run has not ended, or the file cannot be read."""
    with suppress(OSError, ValueError):
        return dict(json.loads((directory / SUMMARY_FILE).read_text()))
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
        cure = f"wait for it, or end it: raysim stop {folder}"
        raise ConfigError(f"another process is at work in {folder}; {cure}") from error
    try:
        with suppress(OSError):  # a full disk; only `raysim stop` reads it
            os.truncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        owner.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path) -> int:
    """The file, open and locked until the process ends. A lock on a directory is local to one machine under NFS."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        with suppress(FileNotFoundError):  # the previous owner may just have removed it
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def lock_owner(folder: Path) -> dict[str, Any] | None:
    """The process (`pid`, `host`, if it could write them) that holds the lock of a run directory; None if none does."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:  # no such file, or readable by its owner only
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        with suppress(OSError, ValueError):
            return dict(json.loads((folder / LOCK_FILE).read_text()))
        return {}
    finally:
        os.close(handle)
