"""A run's folder: it is new, it is this run's alone, and one process works in it at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from raysim.core.errors import ConfigError

LOCK_FILE = ".process"  # in a run's folder: who is at work there
RUNS_VARIABLE = "RAYSIM_RUNS"  # the variable that says where new runs go, if not in `runs_directory`


@contextmanager
def reserve_directory(out: str | None, stem: str) -> Iterator[Path]:
    """A folder that is this run's alone, made here: `out`, or the first free of STEM-001, STEM-002, ... in `runs_directory()`.

    What is still empty at the end is removed, so that a run that is refused leaves nothing.
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
        with suppress(OSError):  # it is in use, and so are those above it
            for empty in made:
                empty.rmdir()


def runs_directory() -> Path:
    """Where runs go that no folder is given for: RAYSIM_RUNS, or `runs_directory`."""
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
    """`folder`, new, and what is missing above it; all that was made, the deepest first, is added to `made`."""
    missing = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made += missing
    folder.mkdir()
    made.insert(0, folder)
    return folder


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """No other process works in `folder` during the block. Raises ConfigError if one does."""
    owner = folder / LOCK_FILE
    try:
        handle = _open_locked(owner)
    except BlockingIOError as error:
        cure = f"wait for it, or end it: raysim stop {folder}"
        raise ConfigError(f"another process is at work in {folder}; {cure}") from error
    try:
        with suppress(OSError):  # a full disk; it serves `raysim stop` alone
            os.truncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        owner.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path) -> int:
    """The file, open and locked until the process ends. Of a folder, NFS would keep the lock on one machine."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        with suppress(FileNotFoundError):  # who had it before may just have removed it
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def lock_owner(folder: Path) -> dict[str, Any] | None:
    """The process (`pid`, `host`, as far as it told) that is at work in a run's folder; None if none is seen."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:  # not there, or another user's alone
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
