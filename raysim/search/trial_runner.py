"""One trial: its federations, round by round, in a process that continues with the next trial and keeps the data open.

`TrialRounds` runs the rounds of one trial. Ray Tune runs `FederationTrainable`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from ray.tune import Trainable

from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_text
from raysim.core.errors import ConfigError, NodeError, RaysimError
from raysim.core.events import RoundEvent, RunFinished
from raysim.core.results import RunOutcome
from raysim.search.objectives import BEST_PREFIX, combine_rows
from raysim.search.schedulers import SCHEDULERS
from raysim.search.spec import FederationVariant, SearchSpec, unfit_node
from raysim.search.state_transfer import complete_import, export_state, import_state
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_store import TrialStatus, finished_record, logged_rounds, trial_directory
from raysim.search.tune_compat import silence_tune_loggers
from raysim.search.tune_searcher import TRIAL_NUMBER
from raysim.storage import checkpoint
from raysim.storage.run_directory import CHECKPOINTS, read_summary

MAX_RETRIES = 1  # times that a failed round is repeated from the last checkpoint
SESSION_FILE = "session"  # in a trial's directory: the id of the session that last ran it
CUMULATIVE = ("bytes", "spent")  # columns that add up over rounds
Row = Mapping[str, Any]  # the metrics of a round


class TrialRounds:
    """The rounds of a trial, combined over its federations. A trial that was started before is continued."""

    def __init__(self, spec: SearchSpec, number: int, values: Mapping[str, Any], cache: TrialCache) -> None:
        self.spec, self.number, self.values, self.cache = spec, number, values, cache
        self.directory, self.variants = trial_directory(spec.out, number), spec.variants_of(values)
        complete_import(self.directory, self.variants)
        self.ended = finished_record(self.directory)
        self.reported = self._join_session()  # the last round that Tune has
        self.failures = 0  # of the next round
        self._rows: Generator[dict[str, Any]] | None = None

    def _join_session(self) -> int:
        """Record this session. Returns the last round whose result Tune has; later rounds are read or computed."""
        path, completed = self.directory / SESSION_FILE, self._completed_round()
        same_session = path.exists() and path.read_text() == self.spec.session
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(path, self.spec.session)
        if same_session:
            return min(completed, self._last_round() - 1)  # the process may be lost before Tune has the last one
        return 0 if SCHEDULERS[self.spec.scheduler].replays_rounds else max(0, completed - 1)

    def _last_round(self) -> int:
        """The last round: the declared one, or the largest of the federations if early stopping has ended all of them.

        Raises ConfigError for values that are invalid together.
        """
        summaries = [read_summary(self.directory / name) for name in self.variants]
        if all(summary.get("status") == RunOutcome.DONE for summary in summaries):
            return max(int(summary["rounds"]) for summary in summaries)
        return self.spec.config(self.values, self.spec.variants[0]).rounds

    def _completed_round(self) -> int:
        """The last round of which all federations of the trial have a checkpoint."""
        return min(_checkpointed_round(self.directory / name) for name in self.variants)

    def step(self) -> dict[str, Any]:
        """The metrics of the next round. A round that fails again after a retry ends the trial with its cause."""
        while True:
            try:
                if self._rows is None:
                    self._rows = self._combined_rows()
                row = next((row for row in self._rows if row["round"] > self.reported), None)
            except RaysimError as error:
                self.close()
                self.failures += 1
                if self.failures > MAX_RETRIES or isinstance(error, ConfigError | NodeError):
                    return self._failed(error)
            else:
                if row is None:  # the trial ended in an earlier session
                    return {"round": self.reported, "done": True}
                self.reported, self.failures = row["round"], 0
                return row

    def _failed(self, error: RaysimError) -> dict[str, Any]:
        if isinstance(error, NodeError):
            return unfit_node_result(unfit_node(str(error)), self.reported)
        return failed_result(str(error), self.reported)

    def close(self) -> None:
        """End the run in progress; its recorded rounds stay on disk."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _combined_rows(self) -> Generator[dict[str, Any]]:
        """The rows of the trial. Each row combines the same round of all federations, which advance together.

        A federation that early stopping has ended contributes its last row.
        """
        variants = self.variants.values()
        federations = [self._federation_rows(name, variant) for name, variant in self.variants.items()]
        try:
            latest: list[tuple[dict[str, Any], str | None]] = [({}, None)] * len(federations)
            while any(results := [next(federation, None) for federation in federations]):
                latest = [new or old for new, old in zip(results, latest, strict=True)]
                rows = [row for row, _ in latest]
                repeated = [((each.seed, each.fold), row) for each, row in zip(variants, rows, strict=True)]
                row = combine_rows(repeated, self.spec.better) | {"round": max(row["round"] for row in rows)}
                row |= {name: sum(each[name] for each in rows) for name in CUMULATIVE}  # the sum, not the mean
                row["done"] = self.ended is not None and row["round"] == self.ended.rounds
                digests = {name: digest for name, (_, digest) in zip(self.variants, latest, strict=True)}
                if all(digests.values()):
                    row |= {"done": True, "status": TrialStatus.DONE, "digests": digests}
                yield row
        finally:
            for federation in federations:
                federation.close()

    def _federation_rows(
        self, name: str, variant: FederationVariant
    ) -> Generator[tuple[dict[str, Any], str | None], None, None]:
        """The row of each round with the cumulative columns; the last row has the digest of the final state."""
        directory, config = self.directory / name, self.spec.config(self.values, variant)
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        write_text(directory / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
        total, best = dict.fromkeys(CUMULATIVE, 0.0), dict[str, Any]()
        with closing(self._rounds(config, directory)) as rounds:
            for row, digest in rounds:
                total["bytes"] += sum(row[column] for column in ("bytes_up", "bytes_down", "bytes_between"))
                total["spent"] += row["seconds"]
                known = {column: value for column, value in row.items() if value is not None}
                best = _best_columns(known) if row.get("best_round") == row["round"] else best
                yield known | best | total, digest

    def _rounds(self, config: RunConfig, directory: Path) -> Generator[tuple[Row, str | None], None, None]:
        """The logged rows up to the last checkpoint, then the computed rows; the last row has the digest."""
        logged, digest = list(logged_rounds(directory)), _final_digest(directory)
        if self.ended is not None and not self.ended.done:
            yield from ((row, None) for row in logged if row["round"] <= self.ended.rounds)
        elif digest is not None:
            yield from ((row, None) for row in logged[:-1])
            yield logged[-1], digest
        else:
            completed = [row for row in logged if row["round"] <= _checkpointed_round(directory)]
            # After the last round, the run may have ended without its summary. Its digest then belongs to this row.
            yield from ((row, None) for row in completed[:-1])
            yield from self._run(config, directory, completed[-1] if completed else None)

    def _run(
        self, config: RunConfig, directory: Path, pending: Row | None
    ) -> Generator[tuple[Row, str | None], None, None]:
        """The row `pending`, of the newest checkpoint, then those of the remaining rounds, which are computed."""
        digest = None
        if pending is not None and pending["round"] < config.rounds and config.early_stopping is None:
            yield pending, None  # the run continues after it
            pending = None
        with closing(self.cache.run(config, directory)) as events:
            for event in events:
                if isinstance(event, RunFinished):
                    digest = str(event.values["digest"])
                elif isinstance(event, RoundEvent):
                    if pending is not None:
                        yield pending, None
                    pending = event.values if event.is_last else None
                    if not event.is_last:
                        yield event.values, None
        assert pending is not None
        yield pending, digest  # after the run has ended: a run that is closed before its end counts as interrupted

    def import_state(self, source: Path) -> None:
        """Continue from the state of another trial in `source`: its rounds, model and client states."""
        imported = import_state(source, self.number, self.directory, self.values, self.variants)
        self.reported = self.reported if imported is None else imported

    def export_state(self, target: Path) -> None:
        """Write the trial's round to `target`, and its state if the scheduler transfers states between trials."""
        with_state = SCHEDULERS[self.spec.scheduler].transfers_state
        export_state(target, self.number, self.directory, self.reported, with_state=with_state)


def failed_result(cause: str, round: int) -> dict[str, Any]:
    """The result that ends a trial which failed after `round`; `done` ends it for Tune."""
    return {"round": round, "status": TrialStatus.FAILED, "cause": cause, "done": True}


def unfit_node_result(cause: str, round: int = 0) -> dict[str, Any]:
    """The result of a trial on a node that cannot run trials: it ends the search and is not counted as a failure."""
    return failed_result(cause, round) | {"unfit_node": True}


def _checkpointed_round(directory: Path) -> int:
    """The round of the newest checkpoint; the last round of a finished run without checkpoints; else 0."""
    newest = next(checkpoint.newest_first(directory / CHECKPOINTS), None)
    if newest is not None:
        return int(newest.name.rpartition("_")[2])
    return max((row["round"] for row in logged_rounds(directory)), default=0) if _final_digest(directory) else 0


def _best_columns(row: Row) -> dict[str, Any]:
    """The round and the scores of a row, as those of the best round."""
    scores = {name: value for name, value in row.items() if name.startswith(("inside/", "outside/"))}
    return {f"{BEST_PREFIX}{name}": value for name, value in ({"round": row["round"]} | scores).items()}


def _final_digest(directory: Path) -> str | None:
    """The digest of the final state of a finished run; None if it is not finished."""
    summary = read_summary(directory)
    return str(summary["digest"]) if summary.get("status") == RunOutcome.DONE else None


class FederationTrainable(Trainable):
    """The class that Ray Tune runs: a step is a round. A process runs one trial after the other."""

    def setup(self, config: dict[str, Any], spec: SearchSpec | None = None) -> None:
        """Start the first trial of this process."""
        assert spec is not None
        silence_tune_loggers()
        if os.path.isdir(spec.cwd):
            os.chdir(spec.cwd)  # so that relative paths are the same as for the command
            sys.path.insert(0, spec.cwd)  # so that modules of the user are found
        self.spec, self.cannot_run = spec, spec.node_incompatibility()
        if self.cannot_run:
            return
        self.cache = TrialCache(spec)
        group = self.trial_resources
        share = group.bundles[0].get("GPU", 0) if group is not None else 0
        if share and spec.backend == "local" and torch.cuda.is_available():  # client actors limit their own memory
            torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
        self._start(config)

    def _start(self, config: Mapping[str, Any]) -> None:
        values = {key: value for key, value in config.items() if key != TRIAL_NUMBER}
        # The number is read from the name, because PBT copies the configuration of another trial with its number.
        self.rounds = TrialRounds(self.spec, int(self.trial_name), values, self.cache)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process, with the open data."""
        if not self.cannot_run:
            self.rounds.close()
            self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round."""
        return unfit_node_result(self.cannot_run) if self.cannot_run else self.rounds.step()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called for a scheduler that pauses trials or transfers their states."""
        if not self.cannot_run:
            self.rounds.export_state(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from a checkpoint, of this trial or another one."""
        if not self.cannot_run:
            self.rounds.import_state(Path(checkpoint))

    def cleanup(self) -> None:
        """End the trial and its client actors."""
        if not self.cannot_run:
            self.rounds.close()
            self.cache.session_actors.close()
