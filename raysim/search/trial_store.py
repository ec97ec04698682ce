"""The files of a trial: its record (trial.json), its lineage, and the logs of its federations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from raysim.config.introspection import to_python_value
from raysim.core.atomic_io import write_json
from raysim.core.errors import ConfigError
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import LOG_FILE

RECORD_FILE = "trial.json"
LINEAGE_FILE = "lineage.jsonl"  # the states that a trial has taken over, in its directory
IMPORT_DIRECTORY = "adopted"  # the state that a trial is taking over
PENDING_LINEAGE_FILE = "lineage.json"  # in IMPORT_DIRECTORY, written last: the new line of LINEAGE_FILE


class TrialStatus(StrEnum):
    """The status of a trial."""

    RUNNING = "running"
    DONE = "done"  # all rounds
    STOPPED = "stopped"  # early, by the scheduler
    FAILED = "failed"


@dataclass
class TrialRecord:
    """The record of a trial: the content of trial.json."""

    number: int
    values: Mapping[str, Any]
    status: TrialStatus = TrialStatus.RUNNING
    rounds: int = 0
    seconds: float = 0.0  # of its rounds
    last: Mapping[str, Any] = field(default_factory=dict)  # the latest value of each metric
    best: Mapping[str, Any] = field(default_factory=dict)  # the best value of each objective over the rounds
    digests: Mapping[str, str] = field(default_factory=dict)  # of the final states, by federation
    cause: str = ""  # of its failure
    started: float = 0.0  # seconds since 1970 of its first round's start and of its end; 0 if unknown
    ended: float = 0.0
    lineage: bool = False  # whether it has taken over another trial's state (PBT)

    def __post_init__(self) -> None:
        self.status = TrialStatus(self.status)

    @property
    def done(self) -> bool:
        """Whether the trial has finished all rounds."""
        return self.status is TrialStatus.DONE

    @property
    def stopped(self) -> bool:
        """Whether the scheduler has stopped the trial."""
        return self.status is TrialStatus.STOPPED

    @property
    def failed(self) -> bool:
        """Whether the trial has failed."""
        return self.status is TrialStatus.FAILED

    @property
    def unfinished(self) -> bool:
        """Whether the trial has not ended."""
        return self.status is TrialStatus.RUNNING

    @property
    def reported_status(self) -> str:
        """The status in tables and reports: unfinished instead of running, because the search may have ended."""
        return "unfinished" if self.unfinished else self.status.value


def trial_directory(out: Path, number: int) -> Path:
    """The directory of trial `number` of the search in `out`."""
    return out / "trials" / f"{number:04}"


def save_record(out: Path, record: TrialRecord) -> None:
    """Write trial.json atomically."""
    directory = trial_directory(out, record.number)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RECORD_FILE, vars(record))


def load_records(out: Path) -> list[TrialRecord]:
    """The records of a search, by number. A trial with a torn file counts as not started.

    Raises ConfigError for a record of another version of raysim.
    """
    records = []
    for path in sorted((out / "trials").glob(f"*/{RECORD_FILE}")):
        try:
            records.append(_load_record(path.parent))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            continue
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ConfigError(
                f"{path} was written by another version of raysim ({error}); resume with the version in {out}/env.json"
            ) from error
    return sorted(records, key=lambda record: record.number)


def _load_record(directory: Path) -> TrialRecord:
    record = TrialRecord(**json.loads((directory / RECORD_FILE).read_text()))
    record.values = {key: to_python_value(value) for key, value in record.values.items()}
    apply_lineage(record, directory)
    return record


def finished_record(directory: Path) -> TrialRecord | None:
    """The record of the trial in `directory` if an earlier session has ended it."""
    with suppress(OSError, ValueError, TypeError):
        record = _load_record(directory)
        return None if record.unfinished else record
    return None


def apply_lineage(record: TrialRecord, directory: Path) -> None:
    """Set the record's values to those with which the trial continued, if it took over another trial's state."""
    notes = lineage(directory)
    record.lineage = bool(notes)
    if notes:
        record.values = {key: to_python_value(value) for key, value in notes[-1]["values"].items()}


def lineage(directory: Path) -> list[dict[str, Any]]:
    """The states that the trial in `directory` has taken over: the round, the donor, and the new values."""
    path, pending_path = directory / LINEAGE_FILE, directory / IMPORT_DIRECTORY / PENDING_LINEAGE_FILE
    notes = list(read_jsonl(path))
    pending = [json.loads(pending_path.read_text())] if pending_path.exists() else []
    return notes if notes[-1:] == pending else [*notes, *pending]


def federation_directories(directory: Path) -> dict[str, Path]:
    """The run directories of a trial by federation: `directory` for a single federation, else subdirectories."""
    if (directory / LOG_FILE).exists():
        return {"": directory}
    return {path.parent.name: path.parent for path in sorted(directory.glob(f"*/{LOG_FILE}"))}


def logged_rounds(directory: Path) -> Iterator[dict[str, Any]]:
    """The rows of the rounds in a run's log."""
    yield from (entry[0] for entry in read_jsonl(directory / LOG_FILE))
