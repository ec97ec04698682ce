"""The results of a search while it runs: the record of each trial, the best trials, the checkpoints that are kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.numeric import is_finite_number, is_number
from raysim.search.objectives import BEST_PREFIX, Objective, combine_rows, pareto_front, tied_records
from raysim.search.options import CheckpointRetention
from raysim.search.optuna_sampler import optuna_importance
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import (
    TrialRecord,
    TrialStatus,
    apply_lineage,
    federation_directories,
    lineage,
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
        """Record a new trial, which waits for a process."""
        # Files of an earlier trial with a torn trial.json, which may have had other values.
        _remove_directory(trial_directory(self.spec.out, number))
        self.records[number] = TrialRecord(number, values)
        save_record(self.spec.out, self.records[number])

    def start_rounds(self, number: int) -> None:
        """Record the time at which the trial has a process; a trial that continues keeps its first one."""
        record = self.records[number]
        if not record.rounds:
            record.started = time.time()
            save_record(self.spec.out, record)

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
        record.cause = str(result.get("cause", ""))  # of a federation that is left out
        record.last = {**record.last, **_metrics(result)}
        record.best = dict(result["best_values"])
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
        record.ended = time.time()
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
        sign = -1 if first.better == "higher" else 1
        return sorted(pool, key=lambda record: (sign * record.last[first.column], record.number))[:1]

    def ties(self) -> list[TrialRecord]:
        """The trials with the same value as the best one, which is the first of them; none for several objectives."""
        best, objectives = self.best(), self.spec.objectives
        return tied_records(list(self.records.values()), best[0], objectives[0]) if best and not objectives[1:] else []

    @property
    def stagnation_trials(self) -> int:
        """The trials without a better value after which `--stop auto` starts no new trial: 4 per key, at least 8."""
        return max(8, 4 * len(self.spec.space.domains))

    def stagnates(self) -> bool:
        """Whether the best value has not improved in the last `stagnation_trials` ended trials, by number."""
        best = next(iter(self.best()), None)
        ended = [record.number for record in self.records.values() if not record.unfinished]
        return best is not None and sum(number > best.number for number in ended) >= self.stagnation_trials

    def pareto_front(self, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
        """The records that no other record dominates, sorted by the first objective, the best first."""
        return pareto_front(records, objectives)

    def _has_objectives(self, record: TrialRecord) -> bool:
        values = [record.last.get(each.column) for each in self.spec.objectives]
        return not record.failed and all(map(is_finite_number, values))

    def run_directories(self, record: TrialRecord) -> Mapping[str, Path]:
        """The run directories of a trial, by federation."""
        return federation_directories(trial_directory(self.spec.out, record.number))

    def objective_by_round(self, rounds: pd.DataFrame) -> pd.DataFrame:
        """The first objective of each trial in each evaluated round: columns trial, round, value.

        `rounds` is the table in rounds.parquet. The federations are combined as in the comparison of the trials: with
        held-out sites `worst` is the worst of them. A federation that has ended contributes its last value.
        """
        column, rows = self.spec.objectives[0].row_column, list[tuple[Any, Any, float]]()
        if column not in rounds or not len(rounds):
            return pd.DataFrame(columns=["trial", "round", "value"])
        for number, record in sorted(self.records.items()):
            variants, of_trial = self.spec.variants_of(record.values), rounds[rounds["trial"] == number]
            known = of_trial.dropna(subset=[column])
            table = known.pivot_table(index="round", columns="federation", values=column, aggfunc="last").ffill()
            for at in table.index:
                values = [(each, table.loc[at, name]) for name, each in variants.items() if name in table]
                found = [((each.seed, each.fold), {column: float(value)}) for each, value in values if pd.notna(value)]
                rows.append((number, at, combine_rows(found, self.spec.better)[column]))
        return pd.DataFrame(rows, columns=["trial", "round", "value"])

    def optuna_importance(self) -> dict[str, float]:
        """The importance of each key by Optuna, for the first objective; empty if Optuna is not installed."""
        return optuna_importance(self.spec.space, self.spec.objectives[0], list(self.records.values()))

    def imports(self, record: TrialRecord) -> list[tuple[int, int]]:
        """The rounds after which the trial took over a state (PBT), each with the number of the donor."""
        return [(note["round"], note["from"]) for note in lineage(trial_directory(self.spec.out, record.number))]

    def write_tables(self) -> None:
        """Write trials.parquet, rounds.parquet and best.yaml, each atomically."""
        start = time.monotonic()
        records = sorted(self.records.values(), key=lambda record: record.number)
        write_tables(self.spec, records, self.best(), self.ties())
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
