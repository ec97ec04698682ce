"""The results of a search while it runs: the record of each trial, the best trials, the checkpoints that are kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysim.core.numeric import is_finite_number, is_number
from raysim.search.objectives import BEST_PREFIX, Objective, pareto_front
from raysim.search.options import CheckpointRetention
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import (
    TrialRecord,
    TrialStatus,
    apply_lineage,
    federation_directories,
    save_record,
    trial_directory,
)
from raysim.search.trial_tables import write_tables, write_tensorboard_hparams
from raysim.storage import checkpoint
from raysim.storage.run_directory import BEST, CHECKPOINTS, INITIAL_WEIGHTS_FILE

MAX_TABLE_SHARE = 0.02  # largest share of a search's time that may be spent on rewriting its tables


class SearchResults:
    """The trials of a search. The tables are rewritten from time to time, and at the end."""

    def __init__(self, spec: SearchSpec, records: Sequence[TrialRecord], keep_checkpoints: CheckpointRetention) -> None:
        self.spec, self.keep_checkpoints = spec, keep_checkpoints
        self.records = {record.number: record for record in records}
        self.ended_earlier = {record.number for record in records if not record.unfinished}  # before this session
        self._tables_written_at = self._tables_seconds = 0.0

    def start_trial(self, number: int, values: Mapping[str, Any]) -> None:
        """Record a new trial."""
        # Files of an earlier trial with a torn trial.json, which may have had other values.
        _remove_directory(trial_directory(self.spec.out, number))
        self.records[number] = TrialRecord(number, values)
        save_record(self.spec.out, self.records[number])

    def add_round(self, number: int, result: Mapping[str, Any]) -> None:
        """Record a round of the trial, or its failure."""
        record = self.records[number]
        # Not the values from Tune: under PBT, Tune has the new values before the trial has the matching state.
        apply_lineage(record, trial_directory(self.spec.out, number))
        status = result.get("status")  # with the result that ends the trial
        if status == TrialStatus.FAILED:
            record.status, record.cause = TrialStatus.FAILED, str(result["cause"])
            return
        record.rounds, record.seconds = int(result["round"]), float(result["spent"])
        record.last = {**record.last, **_metrics(result)}
        record.best = dict(record.best)
        for each in self.spec.objectives:
            value, best = result.get(each.row_column), record.best.get(each.row_column)
            if is_finite_number(value) and (best is None or each.is_better(value, best)):
                record.best[each.row_column] = value
        if status == TrialStatus.DONE:
            record.status, record.digests = TrialStatus.DONE, dict(result["digests"])
        save_record(self.spec.out, record)  # a search that is killed resumes with the best values so far

    def end_trial(self, number: int, cause: str = "") -> None:
        """Record that Tune has ended the trial: after its last round, by the scheduler, or failed with `cause`."""
        record = self.records[number]
        if cause:
            record.status, record.cause = TrialStatus.FAILED, cause
        elif record.unfinished:
            record.status = TrialStatus.STOPPED
        save_record(self.spec.out, record)
        write_tensorboard_hparams(self.spec, record)
        self._remove_checkpoints()
        if time.monotonic() - self._tables_written_at > self._tables_seconds / MAX_TABLE_SHARE:
            self.write_tables()

    def best(self) -> list[TrialRecord]:
        """The best trial by its objective; with several objectives the Pareto front.

        Trials that finished all rounds rank before those that were stopped.
        """
        finished = [record for record in self.records.values() if self._has_objectives(record)]
        pool = [record for record in finished if record.done] or finished
        if len(self.spec.objectives) > 1:
            return self.pareto_front(pool, self.spec.objectives)
        first = self.spec.objectives[0]
        pool.sort(key=lambda record: record.last[first.column], reverse=first.better == "higher")
        return pool[:1]

    def pareto_front(self, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
        """The records that no other record dominates, sorted by the first objective, the best first."""
        return pareto_front(records, objectives)

    def _has_objectives(self, record: TrialRecord) -> bool:
        values = [record.last.get(each.column) for each in self.spec.objectives]
        return not record.failed and all(map(is_finite_number, values))

    def run_directories(self, record: TrialRecord) -> Mapping[str, Path]:
        """The run directories of a trial, by federation."""
        return federation_directories(trial_directory(self.spec.out, record.number))

    def write_tables(self) -> None:
        """Write trials.parquet, rounds.parquet and best.yaml, each atomically."""
        start = time.monotonic()
        write_tables(self.spec, sorted(self.records.values(), key=lambda record: record.number), self.best())
        self._tables_written_at = time.monotonic()
        self._tables_seconds = self._tables_written_at - start

    def _remove_checkpoints(self) -> None:
        """Remove checkpoints and weights of the ended trials that are not among the best, unless all are kept."""
        if self.keep_checkpoints == "all":
            return
        best = {record.number for record in self.best()}
        for record in self.records.values():
            if not record.unfinished and record.number not in best:
                for directory in self.run_directories(record).values():
                    (directory / INITIAL_WEIGHTS_FILE).unlink(missing_ok=True)
                    for folder in (CHECKPOINTS, BEST):
                        for path in checkpoint.newest_first(directory / folder):
                            _remove_directory(path)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a round, without the numbers that Tune adds."""
    names = ("loss", "bytes", "spent", f"{BEST_PREFIX}round")
    stems = tuple(f"{prefix}{role}/" for prefix in ("", BEST_PREFIX) for role in ("inside", "outside"))
    return {k: v for k, v in result.items() if (k in names or k.startswith(stems)) and is_number(v)}


def _remove_directory(directory: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(directory)
