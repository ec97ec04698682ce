"""Find the runs and searches that are active on a cluster and on this machine, read their status, and stop them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from raysim.config.merge import read_file
from raysim.core.errors import ConfigError, RunError
from raysim.distributed.control_actor import CONTROL, NAMESPACE, RunStatus, run_name
from raysim.distributed.timeouts import POLL_INTERVAL_S, STATUS_REPLY_TIMEOUT_S, STOP_TIMEOUT_S
from raysim.distributed.waiter import Waiter
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import LOCK_FILE, LOG_FILE, lock_owner, read_summary


def active_names() -> set[str]:
    """The names of the active runs and searches on the connected Ray cluster."""
    return {
        run_name(actor["namespace"]) for actor in ray.util.list_named_actors(all_namespaces=True) if _is_control(actor)
    }


def _is_control(actor: dict[str, str]) -> bool:
    return actor["namespace"].startswith(NAMESPACE) and actor["name"].rpartition("/")[2] == CONTROL


def _control_actor(name: str) -> Any:
    """The control actor of this run or search. Raises ValueError if it has ended."""
    return ray.get_actor(f"{name}/{CONTROL}", NAMESPACE + name)


def cluster_statuses() -> Iterator[RunStatus]:
    """The status of each active run and search on the connected Ray cluster."""
    replies = dict[str, Any]()
    for name in sorted(active_names()):
        with suppress(ValueError):  # it has ended meanwhile
            replies[name] = _control_actor(name).status.remote()
    refs = list(replies.values())
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=STATUS_REPLY_TIMEOUT_S) if refs else ([], [])
    for name, ref in replies.items():
        try:
            yield ray.get(ref) if ref in ready else RunStatus(name, state="no reply yet")
        except RayError:
            yield RunStatus(name, state="lost")


def stop_runs(names: set[str]) -> Iterator[str]:
    """Stop these runs and searches; yields each name when it has ended. Raises RunError if one does not end in time."""
    waiter, left = Waiter(STOP_TIMEOUT_S), set(names)
    while left:
        active = active_names()
        yield from sorted(left - active)
        left &= active
        for name in left:  # requested repeatedly, because a control actor may be lost and replaced
            with suppress(ValueError, RayError):  # it has ended meanwhile
                _control_actor(name).stop.remote()
        if left and waiter.expired:
            late = ", ".join(sorted(left))
            raise RunError(f"{late}: still active {STOP_TIMEOUT_S:g} s after the stop request; run raysim stop again")
        time.sleep(POLL_INTERVAL_S)


def stop_local_run(directory: Path) -> None:
    """Stop the run in this directory by a signal to its command, like Ctrl-C. Returns when it has ended.

    Raises ConfigError if no process of this user on this machine runs it, or if the process that the directory names
    is not the one that holds its lock; RunError if it does not end in time.
    """
    owner = lock_owner(directory)
    if owner is None:
        raise ConfigError(f"no process runs in {directory}; `raysim status` lists the active runs")
    if owner.get("host") != socket.gethostname():
        where = owner.get("host", "another machine")
        raise ConfigError(
            f"the command of {directory} runs on {where}: stop it on that machine, or by its name with --address"
        )
    pid: Any = owner.get("pid")
    if _holds_lock(directory, pid):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGTERM)
    elif lock_owner(directory) is not None:
        raise ConfigError(
            f"{directory / LOCK_FILE} names process {pid}, but a process of user {directory.stat().st_uid}, who owns "
            "the directory, must hold this lock; end the command itself, with Ctrl-C or kill"
        )
    waiter = Waiter(STOP_TIMEOUT_S)
    while lock_owner(directory) is not None:
        if waiter.expired:
            raise RunError(
                f"process {owner['pid']} is still active {STOP_TIMEOUT_S:g} s after the stop request; run raysim stop "
                "again"
            )
        time.sleep(0.1)


def _holds_lock(directory: Path, pid: Any) -> bool:
    """Whether this process holds the lock of `directory` and belongs to the owner of the directory.

    The file of the lock may name any process, written by anyone who may write to the directory.
    """
    psutil: Any = import_module("psutil")  # installed with Ray
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # the files of another user's process cannot be listed
        process = psutil.Process(pid if isinstance(pid, int) and pid > 0 else 0)
        files = {file.path for file in process.open_files()}
        owned = process.uids().real == directory.stat().st_uid
        return bool(owned) and str((directory / LOCK_FILE).resolve()) in files
    return False


def local_statuses(runs: Path, read: Callable[[Path], RunStatus]) -> Iterator[RunStatus]:
    """The status of each active run and search below `runs`, with Ray or without. `read` returns it for a directory."""
    for directory in sorted(runs.glob("*/")):
        if lock_owner(directory) is not None:
            yield read(directory)


def directory_status(directory: Path) -> RunStatus:
    """The status of a run, active or not, read from its files."""
    owner, config = lock_owner(directory), dict[str, Any]()
    with suppress(ConfigError):
        config = read_file(str(directory / "config.yaml"))
    row = _last_round(directory)
    if owner is None:
        state = str(read_summary(directory).get("status", "ended early" if config else "not started"))
    else:
        state = f"{'running' if row else 'starting' if config else 'being set up'}, process {owner.get('pid')}"
    parts = (config.get(part) for part in ("algorithm", "task"))
    names = [str(part.get("name", "?")) if isinstance(part, dict) else "?" for part in parts]
    return RunStatus(
        name=directory.name,
        description=" on ".join(names) if config else "",
        directory=str(directory.absolute()),
        host=(owner or {}).get("host", ""),
        done=row.get("round", 0),
        total=config.get("rounds"),
        state=state,
        metric="loss",
        value=_number(row.get("loss")),
        round_seconds=_number(row.get("seconds")),
    )


def _last_round(directory: Path) -> dict[str, Any]:
    """The row of the last round in the log; empty without one, and for a line that raysim did not write."""
    match deque(read_jsonl(directory / LOG_FILE), maxlen=1):
        case [[{"round": int()} as row, *_]]:
            return dict(row)
    return {}


def _number(value: Any) -> float | None:
    """The value as a number; None if it is none, as in a line that raysim did not write."""
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)
    return None
