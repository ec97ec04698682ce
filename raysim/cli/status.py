"""`raysim status` and `raysim stop`: the active runs of a cluster and of this machine, from another terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean
from raysim.distributed.active_runs import (
    active_names,
    cluster_statuses,
    directory_status,
    local_statuses,
    stop_local_run,
    stop_runs,
)
from raysim.distributed.connection import connect
from raysim.distributed.control_actor import RunStatus
from raysim.distributed.local_ray import target_address
from raysim.search.search_status import is_search_directory, search_directory_status
from raysim.storage.run_directory import lock_owner, runs_directory

COLUMNS = ("run", "what", "round", "at", "score", "last round", "where")


def status(run: str | None, address: str | None, console: Console) -> None:
    """Print the active runs: on the Ray at `address` (default: RAY_ADDRESS), and below the runs directory.

    `run`, a directory or a name, selects one. Raises ConfigError if it is not active.
    """
    if run is not None and Path(run).is_dir():
        found = [_read_directory(Path(run))]
    else:
        active = _active(address)
        found = [each for each in active if run is None or _matches(run, each.name)]
        if run is not None and not found:
            suggestion = did_you_mean(run, [each.name for each in active])
            raise ConfigError(f"no run {run!r} is alive{suggestion}; {_searched(address)}")
    if not found:
        console.print(f"no run is alive; {_searched(address)}", highlight=False)
        return
    table = Table(box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(*map(Text, _cells(each)))
    console.print(table)


def stop(run: str | None, address: str | None, console: Console) -> None:
    """End `run`, a directory or a name that `raysim status` shows, at the next reply of a site; None: all on the Ray.

    What was recorded until then is kept. Raises ConfigError if it is not active, RunError if it does not end.
    """
    if directory := _local_directory(run, address):
        stop_local_run(directory)
        console.print(f"{directory} has ended", highlight=False)
        return
    if target_address(address) is None:
        raise ConfigError("which Ray? --address HOST:PORT (auto: the one of this machine), RAY_ADDRESS, or a folder")
    with connect(address):
        active = active_names()
        selected = {name for name in active if run is None or _matches(run, name)}
        if run is not None and not selected:
            raise ConfigError(f"no run {run!r} is alive{did_you_mean(run, active)}; {_searched(address)}")
        if run is not None and len(selected) > 1:
            raise ConfigError(f"{run!r} may be {', '.join(sorted(selected))}: give the full name")
        for name in stop_runs(selected):
            console.print(f"{name} has ended", highlight=False)


def _local_directory(run: str | None, address: str | None) -> Path | None:
    """The directory that `run` names, by its path, or by its name if a process of this machine is at work there."""
    if run is None:
        return None
    if Path(run).is_dir():
        return Path(run)
    directory = runs_directory() / run
    return directory if address in (None, "auto") and lock_owner(directory) is not None else None


def _active(address: str | None) -> list[RunStatus]:
    """The runs on the Ray at `address`, then those of this machine that are not among them."""
    found = list[RunStatus]()
    if target_address(address) is not None:
        with connect(address):
            found += cluster_statuses()
    if address in (None, "auto"):
        listed = {each.directory for each in found}
        local = local_statuses(runs_directory(), _read_directory)
        found += [each for each in local if each.directory not in listed]
    return found


def _read_directory(directory: Path) -> RunStatus:
    return (search_directory_status if is_search_directory(directory) else directory_status)(directory)


def _matches(run: str, name: str) -> bool:
    """Whether `run` is the name of the run or search, or that of its directory, which lacks the random suffix."""
    return run in (name, name.rpartition("-")[0])


def _cells(each: RunStatus) -> Sequence[str]:
    done, total = ("" if number is None else number for number in (each.done, each.total))
    return (
        each.name,
        each.description,
        f"{done}/{total}",
        each.state,
        "" if each.value is None else f"{each.metric} {each.value:.4f}",
        "" if each.round_seconds is None else f"{each.round_seconds:.2f} s",
        f"{each.host}:{each.directory}",
    )


def _searched(address: str | None) -> str:
    target = target_address(address)
    if target:
        return f"looked on the Ray at {target}"
    return f"looked in {runs_directory()}; --address or RAY_ADDRESS names a Ray"
