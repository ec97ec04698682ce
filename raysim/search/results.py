"""The books of a search: what each trial came to, the best of them, and the tables that scripts read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams

from raysim.config.resolve import resolve, to_mapping
from raysim.core.atomic_io import replacing, write_text
from raysim.search.objectives import Objective, is_finite_number, is_number
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import (
    TrialRecord,
    apply_lineage,
    federation_directories,
    logged_rounds,
    save_record,
    trial_directory,
)

TAIL = ("round", "spent", "bytes")


class SearchResults:
    """The trials of a search as they go; the tables are written anew now and then, and at the end."""

    def __init__(self, search: SearchSpec, records: Sequence[TrialRecord], keep: str) -> None:
        self.search, self.keep = search, keep
        self.records = {record.number: record for record in records}
        self.earlier = {record.number for record in records if not record.unfinished}  # ended before this session
        self._written = self._pause = 0.0

    def open(self, number: int, values: Mapping[str, Any]) -> None:
        """A new trial begins."""
        _remove_directory(
            trial_directory(self.search.out, number)
        )  # of one whose trial.json was torn; it may have had other values
        self.records[number] = TrialRecord(number, values)
        save_record(self.search.out, self.records[number])

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """A round of it has ended, or it has failed for good."""
        record = self.records[number]
        # Not from Tune: under PBT it has the new values before the trial has the state that they go with.
        apply_lineage(record, trial_directory(self.search.out, number))
        if "failed" in result:
            record.status, record.cause = "failed", str(result["failed"])
            return
        record.rounds, record.seconds = int(result["round"]), float(result["spent"])
        record.last = {**record.last, **_metrics(result)}
        record.best = dict(record.best)
        for each in self.search.objectives:
            value, best = result.get(each.column), record.best.get(each.column)
            if is_finite_number(value) and (best is None or each.beats(value, best)):
                record.best[each.column] = value
        if result.get("last"):
            record.status, record.digests = "done", dict(result["digests"])
        save_record(self.search.out, record)  # a search that is killed goes on with what was best so far

    def end(self, number: int, cause: str = "") -> None:
        """Tune has ended it: by its last round, by the scheduler, or for the failure that `cause` tells."""
        record = self.records[number]
        if cause:
            record.status, record.cause = "failed", cause
        elif record.unfinished:
            record.status = "stopped"
        save_record(self.search.out, record)
        self._board(record)
        self._forget()
        if time.monotonic() - self._written > 50 * self._pause:
            self.tables()

    def best(self) -> list[TrialRecord]:
        """The best trial by the last round; of several objectives all that no other beats in each. Those that went
        through all rounds come before those that were stopped."""
        known = [record for record in self.records.values() if self._values(record) is not None]
        pool = [record for record in known if record.status == "done"] or known
        if len(self.search.objectives) > 1:
            return pareto(pool, self.search.objectives)
        first = self.search.objectives[0]
        pool.sort(key=lambda record: record.last[first.column], reverse=first.better == "higher")
        return pool[:1]

    def _values(self, record: TrialRecord) -> list[float] | None:
        values = [record.last.get(each.column) for each in self.search.objectives]
        if record.status == "failed" or not all(map(is_finite_number, values)):
            return None
        return [float(value) for value in values if value is not None]

    def _forget(self) -> None:
        """Drop the checkpoints of trials that have ended and are not among the best, where that is wished."""
        if self.keep == "all":
            return
        best = {record.number for record in self.best()}
        for record in self.records.values():
            if not record.unfinished and record.number not in best:
                for folder in federation_directories(trial_directory(self.search.out, record.number)).values():
                    for old in (folder / "checkpoints").glob("round_*"):
                        _remove_directory(old)

    def _board(self, record: TrialRecord) -> None:
        """The trial's keys and what it came to, where TensorBoard's hyper-parameters look for them."""
        keys = {
            key: value if isinstance(value, bool | int | float | str) else repr(value)
            for key, value in record.values.items()
        }
        columns = [each.column for each in self.search.objectives]
        found = {column: record.last[column] for column in columns if is_finite_number(record.last.get(column))}
        if not found or not keys:
            return
        folder = trial_directory(self.search.out, record.number) / "tensorboard"
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"), ".hparams")
        for summary in hparams(keys, found):
            board.write_event(Event(wall_time=time.time(), summary=summary))
        board.close()

    def tables(self) -> None:
        """Write trials.parquet, rounds.parquet and best.yaml; a reader finds the old ones or the new."""
        start = time.monotonic()
        out = self.search.out
        _table(out / "trials.parquet", [self._row(record) for record in self._sorted()])
        _table(out / "rounds.parquet", list(self._rounds()))
        best = self.best()
        if best:
            write_text(out / "best.yaml", self._best(best[0]))
        self._written = time.monotonic()
        self._pause = self._written - start

    def _sorted(self) -> list[TrialRecord]:
        return sorted(self.records.values(), key=lambda record: record.number)

    def _row(self, record: TrialRecord) -> dict[str, Any]:
        keys = {key: repr(list(value)) if isinstance(value, tuple) else value for key, value in record.values.items()}
        final = {name: value for name, value in record.last.items() if name not in TAIL}
        return {
            "trial": record.number,
            "status": record.state,
            **keys,
            "rounds": record.rounds,
            "seconds": record.seconds,
            "bytes": record.last.get("bytes"),
            **final,
            **{f"best {name}": value for name, value in record.best.items()},
            "lineage": record.lineage,
            "digest": " ".join(f"{name}:{digest}" if name else digest for name, digest in record.digests.items()),
            "cause": record.cause,
        }

    def _rounds(self) -> Iterator[dict[str, Any]]:
        for record in self._sorted():
            for name, folder in federation_directories(trial_directory(self.search.out, record.number)).items():
                for row in logged_rounds(folder):
                    yield {"trial": record.number, "federation": name, **row}

    def _best(self, record: TrialRecord) -> str:
        cells = self.search.variants_of(record.values)
        name, cell = next(iter(cells.items()))
        held_out = any(other.holdout for other in cells.values())
        config = self.search.config(record.values, cell)
        metric = None if held_out else self.search.base.get("metric")  # there may be no outside site then
        if held_out:  # a model for use is trained on all sites
            given = self.search.space.given(
                self.search.base, {k: v for k, v in record.values.items() if k != "holdout"}
            )
            config = resolve(given)
        lines = [f"# Trial {record.number} of the search: {record.status} after {record.rounds} rounds."]
        lines += [f"# {each.column}: {record.last[each.column]:.6g}" for each in self.search.objectives]
        if record.lineage:
            lines.append(
                "# It took over another trial's state on the way (lineage.jsonl): these are its last values only."
            )
        elif held_out:
            lines.append("# Judged with sites held out; this run trains on all of them.")
        elif record.status == "done":
            lines.append(f"# digest{f' ({name})' if name else ''}: {record.digests[name]}")
        described = to_mapping(config) | {"backend": self.search.base.get("backend", "ray"), "metric": metric}
        return "\n".join(lines) + "\n" + yaml.safe_dump(described, sort_keys=False)


def pareto(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Those that no other beats: as good in every objective, and better in one."""

    def beaten(one: TrialRecord, other: TrialRecord) -> bool:
        pairs = [(each, one.last[each.column], other.last[each.column]) for each in objectives]
        return not any(each.beats(a, b) for each, a, b in pairs) and any(each.beats(b, a) for each, a, b in pairs)

    first = objectives[0]
    front = [record for record in records if not any(beaten(record, other) for other in records)]
    return sorted(front, key=lambda record: record.last[first.column], reverse=first.better == "higher")


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round, without those that are Tune's own."""
    own = ("loss", "bytes", "spent")
    return {k: v for k, v in result.items() if (k in own or k.startswith(("inside/", "outside/"))) and is_number(v)}


def _table(path: Path, found: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(found)
    for name in frame.columns:
        kinds = {type(value) for value in frame[name] if value is not None and value == value}
        if len(kinds) > 1 and not kinds <= {int, float}:  # a choice of text and numbers
            frame[name] = frame[name].map(str, na_action="ignore")
    with replacing(path) as partial:
        frame.to_parquet(partial, index=False)


def _remove_directory(folder: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(folder)
