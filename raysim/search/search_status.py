"""The status of a search, read from its files, for `raysim status`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from raysim.distributed.control_actor import RunStatus
from raysim.search.trial_store import load_records
from raysim.storage.run_directory import SEARCH_FILE, lock_owner


def is_search_directory(directory: Path) -> bool:
    """Whether this is the directory of a search."""
    return (directory / SEARCH_FILE).exists()


def search_directory_status(directory: Path) -> RunStatus:
    """The status of the search in this directory, whether it is active or not."""
    owner, records = lock_owner(directory), load_records(directory)
    states = Counter(record.status for record in records)
    counts = ", ".join(f"{count} {'started' if status == 'running' else status}" for status, count in states.items())
    return RunStatus(
        name=directory.name,
        description="search",
        directory=str(directory.absolute()),
        host=(owner or {}).get("host", ""),
        done=sum(not record.unfinished for record in records),
        total=f"{len(records)} started",
        state=counts if owner is None else f"process {owner.get('pid')}; {counts}",
    )
