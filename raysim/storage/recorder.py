"""Records a run: tables of rounds and sites, failures, TensorBoard events, and a summary for scripts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from raysim.core.atomic_io import write_json
from raysim.core.contracts import EVALUATED_SPLITS, Task
from raysim.core.results import CaseScores, FailureAction, FailureEvent, Round, RunOutcome, Score, role_of
from raysim.storage.best_round import BestRoundTracker
from raysim.storage.case_table import write_cases
from raysim.storage.event_log import EventLog, RoundRow, SiteRow, append_failures, summarize_failures
from raysim.storage.run_directory import SUMMARY_FILE
from raysim.storage.score_notes import score_notes

Better = Mapping[str, Literal["higher", "lower"]]
NO_VALIDATION = (
    "no site that the metric refers to has val cases, and no round is chosen by a test score; set task.data.val, or "
    "give some rows of the table the split val"
)
AGGREGATES = ("mean", "weighted", "worst")  # mean over sites, mean weighted by cases, worst site
Aggregate = dict[str, float]  # value by kind


@dataclass(frozen=True)
class Totals:
    """Sums over the rounds so far: bytes and seconds."""

    up: int = 0
    down: int = 0
    between: int = 0
    seconds: float = 0.0


def aggregate(scores: Iterable[Score], better: Better) -> dict[str, Aggregate]:
    """For each `role/split/metric`: the mean over sites, the mean weighted by cases, and the worst site's value.

    A metric that only the method defines has no direction, so it has no worst value.
    """
    groups: dict[str, list[Score]] = {}
    for score in scores:
        if score.split != "train":
            groups.setdefault(f"{score.role}/{score.split}/{score.metric}", []).append(score)
    result = {}
    for name, group in sorted(groups.items()):
        values = np.array([score.value for score in group])
        weighted = np.average(values, weights=[max(score.cases, 1) for score in group])
        result[name] = {"mean": float(values.mean()), "weighted": float(weighted)}
        if improves := direction(name, better):
            result[name]["worst"] = float(values.max() if improves == "lower" else values.min())
    return result


def direction(name: str, better: Better) -> Literal["higher", "lower"] | None:
    """The direction in which `role/split/metric` improves, declared by the task; None for a metric of the method."""
    return better.get(name.split("/", 2)[-1].partition("@")[0])


def curves_of(row: Mapping[str, Any], scores: Iterable[Score]) -> dict[str, float]:
    """The values of a round by name, for TensorBoard and experiment trackers: its row, and the scores of the sites."""
    curves = {name: value for name, value in row.items() if name != "round" and value is not None}
    return curves | {f"sites/{score.site}/{score.split}/{score.metric}": score.value for score in scores}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation after round `number`; 0 before the first one.

    metrics: the aggregates by role/split/metric. scores: the scores of each site by split/metric.
    """

    number: int = 0
    metrics: dict[str, Aggregate] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Recorder:
    """Writes the records of a run into its directory, round by round; they are on the disk after `flush`.

    Only the recorder writes failures while the server is up.
    """

    directory: Path
    task: Task
    chosen: str  # role/split/metric
    selection: str | None = None  # role/val/metric, by which the best round is chosen; None: no round is chosen
    anonymous_cases: bool = False
    number: int = 0  # of the last round
    last: Evaluation = field(default_factory=Evaluation)
    best: Evaluation = field(default_factory=Evaluation)
    cases: dict[int, tuple[CaseScores, ...]] = field(default_factory=dict)  # of the last and the best round
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        better = direction(self.selection, self.task.score.better) if self.selection else None
        self.tracker = BestRoundTracker(self.selection, better)
        self._board = _board(self.directory / "tensorboard")
        self._log = EventLog(self.directory)
        self._pause = self._flushed = 0.0

    def add(self, round: Round[Any]) -> RoundRow:
        """Record one round; returns its row in rounds.parquet."""
        aggregated = aggregate(round.scores, self.task.score.better)
        row = self._row(round) | {f"{n}/{kind}": v for n, three in aggregated.items() for kind, v in three.items()}
        sites = list(_site_rows(round))
        self._keep(row, sites)
        evaluated = self.cases | {round.number: round.cases}
        self.cases = {n: evaluated[n] for n in (self.last.number, self.best.number) if n in evaluated}
        row["best_round"] = self.tracker.best()
        self._log.append(row, sites)
        self.add_failures(round.failures)
        self._plot(round, row)
        # A flush writes all rounds again. The pause between flushes keeps their share at 0.5 % of the run.
        if time.monotonic() - self._flushed > 200 * self._pause:
            self.flush()
        return row

    def add_failures(self, failures: Iterable[FailureEvent]) -> None:
        """Record failures."""
        append_failures(self.directory, failures)

    def _row(self, round: Round[Any]) -> dict[str, Any]:
        traffic = round.traffic
        return {
            "round": round.number,
            "seconds": round.seconds,
            "sites": len(round.cohort),
            "absent": len(round.absent),
            "left_out": sum(len(each.sites) for each in round.failures if each.action is FailureAction.LEFT_OUT),
            "failures": len(round.failures),
            "seconds_lost": sum(failure.seconds for failure in round.failures),
            "loss": round.loss,
            "bytes_up": sum(traffic.up.values()),
            "bytes_down": sum(traffic.down.values()),
            "bytes_between": sum(traffic.between.values()),
            **{f"server/{name}": value for name, value in round.metrics.items()},
        }

    def _plot(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        curves = curves_of(row, round.scores)
        # One event for all curves: with hundreds of sites, one add_scalar call per curve takes a tenth of a round.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in curves.items()]
        self._board.write_event(Event(wall_time=time.time(), step=round.number, summary=Summary(value=values)))

    def _keep(self, row: RoundRow, sites: Sequence[SiteRow]) -> None:
        """Add a round to the totals, and its evaluation to the last and the best one."""
        self.number = row["round"]
        total = self.totals
        self.totals = Totals(
            total.up + row["bytes_up"],
            total.down + row["bytes_down"],
            total.between + row["bytes_between"],
            total.seconds + row["seconds"],
        )
        if any(split in EVALUATED_SPLITS for _, _, _, split, *_ in sites):
            self.last = _evaluation(row, sites)
            if self.tracker.add(row):
                self.best = self.last

    def rewind(self, number: int) -> float:
        """Delete the records after round `number`; returns the seconds of these rounds. Failures are kept."""
        seconds = sum(row["seconds"] for row, _ in self._log if row["round"] > number)
        self._log.rewind(number)
        self.number, self.last, self.best, self.totals = 0, Evaluation(), Evaluation(), Totals()
        self.tracker.clear()
        self.cases.clear()
        for row, sites in self._log:
            self._keep(row, sites)
        self._board.close()
        self._board = _board(self.directory / "tensorboard", number + 1)
        return float(seconds)

    def sync(self) -> None:
        """Write the log to the disk, so that it survives a power failure."""
        self._log.sync()

    def flush(self) -> None:
        """Write the tables and the TensorBoard events, each table atomically."""
        start = time.monotonic()
        self._log.tables()
        self._board.flush()
        self._flushed = time.monotonic()
        self._pause = self._flushed - start

    def close(self, outcome: RunOutcome, facts: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
        """Flush and write summary.json; returns its content."""
        self.flush()
        last, best = self.last.number, self.best.number
        write_cases(self.directory, self.task, self.cases, last=last, best=best, anonymous=self.anonymous_cases)
        self._board.close()
        self._log.close()
        totals = self.totals
        summary = {
            "schema_version": 1,
            "status": outcome,
            **facts,
            "rounds": self.number,
            "digest": digest,
            "metric": self.chosen,
            "direction": direction(self.chosen, self.task.score.better),
            "better": dict(self.task.score.better),
            "evaluated_round": self.last.number or None,
            "metrics": self.last.metrics,
            "sites": self._of_sites(self.last),
            "best": self.summarize_best(),
            "notes": self._notes(outcome),
            "bytes": {"up": totals.up, "down": totals.down, "between_sites": totals.between},
            "seconds": round(totals.seconds, 3),
            "failures": summarize_failures(self.directory),
        }
        write_json(self.directory / SUMMARY_FILE, summary)
        return summary

    def _notes(self, outcome: RunOutcome) -> list[str]:
        """The sentences about metrics without a value; empty before the first evaluation."""
        scores, metrics = self.last.scores, self.last.metrics
        if not scores and outcome is not RunOutcome.DONE:
            return []
        return score_notes(self.task, scores, self.chosen, has_chosen=self.chosen in metrics)

    def summarize_best(self) -> dict[str, Any]:
        """The scores in the best round, or the reason why there is none."""
        if self.selection is None:
            return {"round": None, "reason": NO_VALIDATION}
        if not self.best.number:
            return {"round": None, "reason": f"{self.selection} has no value in any round"}
        return {
            "round": self.best.number,
            "metric": self.selection,
            "value": self.best.metrics[self.selection]["mean"],
            "metrics": self.best.metrics,
            "sites": self._of_sites(self.best),
        }

    def _of_sites(self, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
        inside, outside = self.task.inside, self.task.outside
        roles = {site: {"role": role_of(site, inside)} for site in (*inside, *outside)}
        return {site: {**found, **evaluation.scores.get(site, {})} for site, found in roles.items()}


def _evaluation(row: RoundRow, sites: Iterable[SiteRow]) -> Evaluation:
    evaluation = Evaluation(row["round"])
    for _, site, _, split, metric, value in sites:
        if split is not None:
            evaluation.scores.setdefault(site, {})[f"{split}/{metric}"] = value
    for column, value in row.items():
        name, _, kind = column.rpartition("/")
        if kind in AGGREGATES and name.startswith(("inside/", "outside/")):
            evaluation.metrics.setdefault(name, {})[kind] = value
    return evaluation


def _board(folder: Path, first: int = 0) -> Any:
    """A writer of TensorBoard events. With `first`, steps from `first` on in older files become invalid.

    It writes synchronously, because a writer thread would hang the run when the disk is full.
    """
    folder.mkdir(exist_ok=True)
    board = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")
    if first:
        started = SessionLog(status=SessionLog.START)
        board.write_event(Event(wall_time=time.time(), step=first, session_log=started))
    return board


def _site_rows(round: Round[Any]) -> Iterable[SiteRow]:
    for score in round.scores:
        yield [round.number, score.site, score.role, score.split, score.metric, score.value]
    for name, sizes in vars(round.traffic).items():
        for site, size in sizes.items():
            yield [round.number, site, "inside", None, f"bytes_{name}", float(size)]
