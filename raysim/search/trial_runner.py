"""The rounds of one trial, combined over its federations."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_text
from raysim.core.errors import ConfigError, NodeError, RaysimError
from raysim.core.events import RoundEvent, RunFinished
from raysim.core.results import RunOutcome
from raysim.search.objectives import BEST_PREFIX, combine_rows, improve
from raysim.search.schedulers import SCHEDULERS
from raysim.search.spec import FederationVariant, SearchSpec, unfit_node
from raysim.search.state_transfer import complete_import, export_state, import_state
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_store import TrialStatus, finished_record, logged_rounds, trial_directory
from raysim.storage import checkpoint
from raysim.storage.run_directory import CHECKPOINTS, read_summary

FAILED_FILE = "failed"  # in the directory of a federation that is left out: the cause of its failure
MAX_RETRIES = 1  # times that a failed round is repeated from the last checkpoint
SESSION_FILE = "session"  # in a trial's directory: the id of the session that last ran it
CUMULATIVE = ("bytes", "spent")  # columns that add up over rounds
Row = Mapping[str, Any]  # the metrics of a round
FederationRow = tuple[dict[str, Any], str | None]  # the metrics of a round, and the digest of the final state


class TrialRounds:
    """The rounds of a trial, combined over its federations. A trial that was started before is continued."""

    def __init__(self, spec: SearchSpec, number: int, values: Mapping[str, Any], cache: TrialCache) -> None:
        self.spec, self.number, self.values, self.cache = spec, number, values, cache
        self.directory, self.variants = trial_directory(spec.out, number), spec.variants_of(values)
        complete_import(self.directory, self.variants)
        self.left_out = {name: cause for name in self.variants if (cause := self._recorded_failure(name))}
        self.failing = ""  # the federation whose round failed
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
        summaries = [read_summary(self.directory / name) for name in self.variants if name not in self.left_out]
        if all(summary.get("status") == RunOutcome.DONE for summary in summaries):
            return max(int(summary["rounds"]) for summary in summaries)
        return self.spec.config(self.values, self.spec.variants[0]).rounds

    def _completed_round(self) -> int:
        """The last round of which all federations have a checkpoint, except those that are left out."""
        return min(_checkpointed_round(self.directory / name) for name in self.variants if name not in self.left_out)

    def _recorded_failure(self, name: str) -> str:
        path = self.directory / name / FAILED_FILE
        return path.read_text() if path.exists() else ""

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
                final = self.failures > MAX_RETRIES or isinstance(error, ConfigError | NodeError)
                if final and not self._leave_out(error):
                    return self._failed(error)
            else:
                if row is None:  # the trial ended in an earlier session
                    return {"round": self.reported, "done": True}
                self.reported, self.failures = row["round"], 0
                return row

    def _failed(self, error: RaysimError) -> dict[str, Any]:
        if isinstance(error, NodeError):
            return unfit_node_result(unfit_node(str(error)), self.reported)
        federation = f"federation {self.failing}: " if self.failing else ""
        return failed_result(f"{federation}{error}", self.reported)

    def _leave_out(self, error: RaysimError) -> bool:
        """Leave the failed federation out of the trial if the user chose so and others remain."""
        others = self.variants.keys() - self.left_out.keys() - {self.failing}
        if self.spec.failed_federations == "fail" or not others or isinstance(error, NodeError):
            return False
        self.left_out[self.failing] = str(error)
        write_text(self.directory / self.failing / FAILED_FILE, str(error))
        self.failures = 0
        return True

    def close(self) -> None:
        """End the run in progress; its recorded rounds stay on disk."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _combined_rows(self) -> Generator[dict[str, Any]]:
        """The rows of the trial. Each row combines the same round of all federations, which advance together.

        A federation that early stopping has ended contributes its last row.
        """
        federations = {name: self._federation_rows(name, variant) for name, variant in self.variants.items()}
        latest: dict[str, FederationRow] = {}
        best: dict[str, float] = {}
        try:
            while advanced := {name: new for name, rows in federations.items() if (new := self._next(name, rows))}:
                latest |= advanced
                for name in self.left_out.keys() - advanced.keys():
                    latest.pop(name, None)
                row = self._combine(latest)
                improve(best, row, self.spec.objectives)
                yield row | {"best_values": dict(best)}
        finally:
            for rows in federations.values():
                rows.close()

    def _next(self, name: str, rows: Iterator[FederationRow]) -> FederationRow | None:
        self.failing = name  # until it has its row
        return next(rows, None)

    def _combine(self, latest: Mapping[str, FederationRow]) -> dict[str, Any]:
        variants, rows = [self.variants[name] for name in latest], [row for row, _ in latest.values()]
        repeated = [((each.seed, each.fold), row) for each, row in zip(variants, rows, strict=True)]
        row = combine_rows(repeated, self.spec.better) | {"round": max(row["round"] for row in rows)}
        row |= {name: sum(each[name] for each in rows) for name in CUMULATIVE}  # the sum, not the mean
        row["done"] = self.ended is not None and row["round"] == self.ended.rounds
        digests = {name: digest for name, (_, digest) in latest.items()}
        if self.left_out:
            row["cause"] = "; ".join(f"left out: federation {name}: {cause}" for name, cause in self.left_out.items())
        if all(digests.values()):
            row |= {"done": True, "status": TrialStatus.DONE, "digests": digests}
        return row

    def _federation_rows(self, name: str, variant: FederationVariant) -> Generator[FederationRow, None, None]:
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
        if (directory / FAILED_FILE).exists():
            yield from ((row, None) for row in logged)
        elif self.ended is not None and not self.ended.done:
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
