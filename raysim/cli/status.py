"""`raysim status` and `raysim stop`: show and stop the active runs of a cluster and of this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
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

TITLE_WIDTH = 13
COLUMNS = ("run", "description", "round", "state", "score", "last round", "directory")


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
            raise ConfigError(f"no run {run!r} is active{suggestion}; {_searched(address)}")
    if not found:
        console.print(f"no run is active; {_searched(address)}", highlight=False)
        return
    print_statuses(found, console)


def print_statuses(found: Sequence[RunStatus], console: Console) -> None:
    """Print a table with a line for each run, or, in a terminal that is too narrow for it, a block for each run.

    Names and directories are never broken over lines, so that they can be copied.
    """
    table = Table(*COLUMNS, box=SIMPLE_HEAD)
    for each in found:
        table.add_row(*map(Text, _cells(each)))
    table.width = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum
    if table.width <= console.width or not console.is_terminal:
        console.print(table, crop=False)
        return
    for each in found:
        lines = [f"{name:<{TITLE_WIDTH}}{cell}" for name, cell in zip(COLUMNS, _cells(each), strict=True) if cell]
        console.print(Text("\n".join(["", *lines])), soft_wrap=True)


def stop(run: str | None, address: str | None, console: Console) -> None:
    """End `run`, a directory or a name that `raysim status` shows, at the next reply of a site.

    None ends all runs of the Ray cluster. All records are kept. Raises ConfigError if `run` is not active, RunError if
    it does not end.
    """
    if directory := _local_directory(run, address):
        stop_local_run(directory)
        console.print(f"{directory} has ended", highlight=False)
        return
    if target_address(address) is None:
        raise ConfigError(
            "no Ray cluster is given: use --address HOST:PORT (auto: that of this machine), set RAY_ADDRESS, or give a "
            "run directory"
        )
    with connect(address):
        active = active_names()
        selected = {name for name in active if run is None or _matches(run, name)}
        if run is not None and not selected:
            raise ConfigError(f"no run {run!r} is active{did_you_mean(run, active)}; {_searched(address)}")
        if run is not None and len(selected) > 1:
            raise ConfigError(f"{run!r} matches {', '.join(sorted(selected))}: give the full name of one")
        for name in stop_runs(selected):
            console.print(f"{name} has ended", highlight=False)


def _local_directory(run: str | None, address: str | None) -> Path | None:
    """The directory `run`: a path, or the name of a run directory that a process of this machine uses."""
    if run is None:
        return None
    if Path(run).is_dir():
        return Path(run)
    directory = runs_directory() / run
    return directory if address in (None, "auto") and lock_owner(directory) is not None else None


def _active(address: str | None) -> list[RunStatus]:
    """The runs on the Ray cluster at `address`, then the other runs of this machine."""
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
    """Whether `run` is the name of the run or search, or the name of its directory, which has no random suffix."""
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
        f"{each.host}:{each.directory}" if each.host else each.directory,
    )


def _searched(address: str | None) -> str:
    target = target_address(address)
    if target:
        return f"searched the Ray cluster at {target}"
    return (
        f"searched {runs_directory()}; for a run in another folder, give its directory; to search a Ray cluster, use "
        "--address HOST:PORT or set RAY_ADDRESS"
    )
