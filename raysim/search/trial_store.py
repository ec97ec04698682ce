"""What a search leaves of its trials, each in a folder of its own, and the tables that are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysim.config.introspection import to_python_value
from raysim.core.atomic_io import write_json
from raysim.core.errors import ConfigError
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import LOG_FILE

SEARCH_FILE = "search.yaml"  # what a search was asked, in its folder
LINEAGE_FILE = "lineage.jsonl"  # whose states a trial has taken over, in its folder
ADOPTED, PENDING_LINEAGE_FILE = (
    "adopted",
    "lineage.json",
)  # what it is taking over, and, once that is whole, the line for the above
FINAL = ("done", "stopped", "failed")


@dataclass
class TrialRecord:
    """A trial: trial.json. `status` is running, done (all rounds), stopped (by the scheduler) or failed."""

    number: int
    values: Mapping[str, Any]
    status: str = "running"
    rounds: int = 0
    seconds: float = 0.0  # of its rounds
    last: Mapping[str, Any] = field(default_factory=dict)  # metrics, the last known of each
    best: Mapping[str, Any] = field(default_factory=dict)  # of each objective, over its rounds
    digests: Mapping[str, str] = field(default_factory=dict)  # by federation
    cause: str = ""  # of its failure
    lineage: bool = False  # whether it has taken another trial's state (PBT)

    @property
    def unfinished(self) -> bool:
        return self.status not in FINAL

    @property
    def state(self) -> str:
        """Its status, for who reads it when nobody may be playing it any more."""
        return "unfinished" if self.unfinished else self.status


def trial_directory(out: Path, number: int) -> Path:
    """The folder of trial `number`."""
    return out / "trials" / f"{number:04}"


def save_record(out: Path, record: TrialRecord) -> None:
    """Write trial.json, whole or not at all."""
    folder = trial_directory(out, record.number)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", vars(record))


def load_records(out: Path) -> list[TrialRecord]:
    """The trials of a search, by number; one whose file is torn is as if it had not begun.

    Raises ConfigError for one that another version of raysim has written.
    """
    found = []
    for path in sorted((out / "trials").glob("*/trial.json")):
        try:
            found.append(_entry(path.parent))
        except TypeError as error:
            raise ConfigError(
                f"{path} is not as this raysim writes it ({error}); go on with the one that did"
            ) from error
        except ValueError:
            continue
    return sorted(found, key=lambda record: record.number)


def _entry(folder: Path) -> TrialRecord:
    record = TrialRecord(**json.loads((folder / "trial.json").read_text()))
    record.values = {key: to_python_value(value) for key, value in record.values.items()}
    apply_lineage(record, folder)
    return record


def apply_lineage(record: TrialRecord, folder: Path) -> None:
    """Give the record of the trial in `folder` the values that it went on with, if it has taken another's state."""
    taken = lineage(folder)
    record.lineage = bool(taken)
    if taken:
        record.values = {key: to_python_value(value) for key, value in taken[-1]["values"].items()}


def lineage(folder: Path) -> list[dict[str, Any]]:
    """Whose states the trial in `folder` has taken over, and what values it went on with (PBT)."""
    path, last = folder / LINEAGE_FILE, folder / ADOPTED / PENDING_LINEAGE_FILE
    found = list(read_jsonl(path))
    pending = [json.loads(last.read_text())] if last.exists() else []
    return found if found[-1:] == pending else [*found, *pending]


def finished_record(folder: Path) -> TrialRecord | None:
    """The trial in `folder`, if an earlier session has seen its end."""
    with suppress(OSError, ValueError, TypeError):
        record = _entry(folder)
        return None if record.unfinished else record
    return None


def federation_directories(folder: Path) -> dict[str, Path]:
    """The runs of a trial by name: one in its own folder, or each in one below it."""
    if (folder / "log.jsonl").exists():
        return {"": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/log.jsonl"))}


def logged_rounds(folder: Path) -> Iterator[dict[str, Any]]:
    """The rounds in a run's log."""
    yield from (entry[0] for entry in read_jsonl(folder / LOG_FILE))
