"""`raysim status` and `raysim stop`: the runs of a cluster and of this machine, from another terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.core.errors import ConfigError, RunError
from raysim.core.suggestions import did_you_mean
from raysim.distributed.connection import connect
from raysim.distributed.control_actor import NAMESPACE, run_name
from raysim.search.trial_store import SEARCH_FILE, load_records
from raysim.storage.event_log import LOG_FILE
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import lock_owner, runs_directory

# The named actors that answer `status()` and `stop()`: of a run, of one that waits for its room, of a search.
CONTROL_ACTORS = ("server", "waiting", "search")
KNOCK = 10.0  # seconds for them to answer
PATIENCE = 120.0  # seconds for one that is told to end
COLUMNS = ("run", "what", "round", "at", "score", "last round", "where")


def status(run: str | None, address: str | None, console: Console) -> None:
    """Print what is alive: of the Ray at `address` (RAY_ADDRESS where not given), and in the folders under `runs_directory`.

    Raises ConfigError if `run` is given and is none of them.
    """
    if run is not None and Path(run).is_dir():
        found = [_of_folder(Path(run))]
    else:
        alive = list(_alive(address))
        told = {each.get("folder") for each in alive}
        alive += [each for each in _here(address) if each["folder"] not in told]
        found = [each for each in alive if run is None or _means(run, each["run"])]
        if run is not None and not found:
            near = did_you_mean(run, [each["run"] for each in alive])
            raise ConfigError(f"no run {run!r} is alive{near}; {_looked(address)}")
    if not found:
        console.print(f"no run is alive; {_looked(address)}", highlight=False)
        return
    table = Table(box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(*map(Text, _cells(each)))
    console.print(table)


def stop(run: str | None, address: str | None, console: Console) -> None:
    """End `run`, a folder, its name or one that `raysim status` shows, at the next reply of a site; all if None.

    What was recorded until then is kept. Raises ConfigError if it is not alive, RunError if it does not end.
    """
    if run is not None and Path(run).is_dir():
        _stop_here(Path(run), console)
        return
    if run is not None and address in (None, "auto") and lock_owner(runs_directory() / run) is not None:
        _stop_here(runs_directory() / run, console)
        return
    with connect(_asked(address)):
        leaders = {run_name(space) for _, space in _leaders()}
        meant = {each for each in leaders if run is None or _means(run, each)}
        if run is not None and not meant:
            raise ConfigError(f"no run {run!r} is alive{did_you_mean(run, leaders)}; {_looked(address)}")
        if run is not None and len(meant) > 1:
            raise ConfigError(f"{run!r} may be {', '.join(sorted(meant))}: say which")
        _gone(meant, console)


def _means(asked: str, name: str) -> bool:
    """Whether this is the name of the run or search, or of its folder, which has no mark at its end."""
    return asked in (name, name.rpartition("-")[0])


def _tell(run: str, leader: str) -> None:
    with suppress(ValueError, RayError):  # it has ended meanwhile
        ray.get_actor(leader, NAMESPACE + run).stop.remote()


def _gone(runs: set[str], console: Console) -> None:
    end = time.monotonic() + PATIENCE
    while runs:
        leaders = {run_name(space): name for name, space in _leaders()}
        left = runs & leaders.keys()
        for run in sorted(runs - left):
            console.print(f"{run} has ended", highlight=False)
        for run in left:  # again, for one that waited may just have got its room
            _tell(run, leaders[run])
        if left and time.monotonic() > end:
            raise RunError(f"{', '.join(sorted(left))}: told to end, but still alive after {PATIENCE:g} s")
        runs = left
        time.sleep(0.5)


def _stop_here(folder: Path, console: Console) -> None:
    """End the run in this folder by a signal to its command, which ends it as Ctrl-C does."""
    owner = lock_owner(folder)
    if owner is None:
        raise ConfigError(f"no process is at work in {folder}; `raysim status` shows what is alive")
    if owner.get("host") != socket.gethostname():
        where = owner.get("host", "another machine")
        raise ConfigError(f"the command of {folder} runs on {where}: there, or by its name and --address")
    try:
        os.kill(owner["pid"], signal.SIGTERM)
    except PermissionError as error:
        raise ConfigError(f"process {owner['pid']}, at work in {folder}, is another user's") from error
    except ProcessLookupError:  # it has ended meanwhile
        pass
    end = time.monotonic() + PATIENCE
    while lock_owner(folder) is not None:
        if time.monotonic() > end:
            raise RunError(f"process {owner['pid']} was told to end, but still is at work after {PATIENCE:g} s")
        time.sleep(0.1)
    console.print(f"{folder} has ended", highlight=False)


def _asked(address: str | None) -> str:
    if not (asked := address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError("which Ray? --address HOST:PORT (auto: the one of this machine), RAY_ADDRESS, or a folder")
    return asked


def _alive(address: str | None) -> Iterator[dict[str, Any]]:
    """What each run and search on the Ray that is meant says of itself."""
    if not (address or os.environ.get("RAY_ADDRESS")):
        return
    with connect(address):
        leaders = list(_leaders())
        asked = dict[str, Any]()
        for name, space in leaders:
            with suppress(ValueError):  # it has ended meanwhile
                asked[run_name(space)] = ray.get_actor(name, space).status.remote()
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=KNOCK) if asked else ([], [])
        for run, ref in asked.items():
            try:
                yield ray.get(ref) if ref in ready else {"run": run, "at": "no answer yet"}
            except RayError:
                yield {"run": run, "at": "lost"}


def _leaders() -> Iterator[tuple[str, str]]:
    """The name and namespace of each run's server actor, and of each search's."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name, space = actor["name"], actor["namespace"]
        if space.startswith(NAMESPACE) and name.rpartition("/")[2] in CONTROL_ACTORS:
            yield name, space


def _here(address: str | None) -> Iterator[dict[str, Any]]:
    """The runs and searches under `runs_directory` at which a process is at work, on a Ray or on none."""
    if address in (None, "auto"):
        for folder in sorted(runs_directory().glob("*/")):
            if lock_owner(folder) is not None:
                yield _of_folder(folder)


def _of_folder(folder: Path) -> dict[str, Any]:
    """What a run's or a search's folder tells, whether it is alive or not."""
    if (folder / SEARCH_FILE).exists():
        return _of_search(folder)
    owner, config = lock_owner(folder), dict[str, Any]()
    with suppress(OSError, ValueError):
        config = yaml.safe_load((folder / "config.yaml").read_text())
    last = deque(read_jsonl(folder / LOG_FILE), maxlen=1)
    row = last[0][0] if last else dict[str, Any]()
    summary = dict[str, Any]()
    with suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
    ended = summary.get("status", "ended early" if config else "not begun")
    named = [config.get(part, {}).get("name", "?") for part in ("algorithm", "task")]
    return {
        "run": folder.name,
        "what": f"{named[0]} on {named[1]}",
        "folder": str(folder.absolute()),
        "host": (owner or {}).get("host", ""),
        "done": row.get("round", 0),
        "of": config.get("rounds"),
        "at": ended if owner is None else f"process {owner.get('pid')}",
        "metric": "loss",
        "value": row.get("loss"),
        "seconds": row.get("seconds"),
    }


def _of_search(folder: Path) -> dict[str, Any]:
    owner, records = lock_owner(folder), load_records(folder)
    states = Counter(record.status for record in records)
    counts = ", ".join(f"{count} {'begun' if status == 'running' else status}" for status, count in states.items())
    return {
        "run": folder.name,
        "what": "search",
        "folder": str(folder.absolute()),
        "host": (owner or {}).get("host", ""),
        "done": sum(not record.unfinished for record in records),
        "of": f"{len(records)} begun",
        "at": counts if owner is None else f"process {owner.get('pid')}; {counts}",
    }


def _cells(each: dict[str, Any]) -> Sequence[str]:
    value, seconds = each.get("value"), each.get("seconds")
    return (
        each["run"],
        each.get("what", ""),
        f"{each.get('done', '')}/{each.get('of', '')}",
        each.get("at", ""),
        "" if value is None else f"{each['metric']} {value:.4f}",
        "" if seconds is None else f"{seconds:.2f} s",
        f"{each.get('host', '')}:{each.get('folder', '')}",
    )


def _looked(address: str | None) -> str:
    asked = address or os.environ.get("RAY_ADDRESS")
    return (
        f"looked on the Ray at {asked}"
        if asked
        else f"looked in {runs_directory()}; --address or RAY_ADDRESS names a Ray"
    )
