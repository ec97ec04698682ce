"""What a run leaves behind: tables of rounds and sites, TensorBoard events, and the summary that scripts read."""

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
from raysim.core.results import FailureAction, Round, Score
from raysim.storage.event_log import EventLog, RoundRow, SiteRow, append_failures, summarize_failures

Better = Mapping[str, Literal["higher", "lower"]]
AGGREGATES = ("mean", "weighted", "worst")  # of the sites, of the cases, site
Aggregate = dict[str, float]  # of each kind


@dataclass(frozen=True)
class Totals:
    """What has added up over the rounds so far."""

    up: int = 0
    down: int = 0
    between: int = 0
    seconds: float = 0.0


def aggregate(scores: Iterable[Score], better: Better) -> dict[str, Aggregate]:
    """For each `role/split/metric`: the plain mean over sites, the mean weighted by cases, and the worst site.

    What a method notes of itself has no worst.
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
        if way := direction(name, better):
            result[name]["worst"] = float(values.max() if way == "lower" else values.min())
    return result


def direction(name: str, better: Better) -> Literal["higher", "lower"] | None:
    """Which way `role/split/metric` improves, as the task declares it; None for what a method notes of itself."""
    return better.get(name.split("/", 2)[-1].partition("@")[0])


@dataclass
class Recorder:
    """Writes a run's folder as the rounds come; what was added is on the disk after `flush`, whatever comes next."""

    out: Path
    task: Task
    chosen: str  # role/split/metric
    number: int = 0  # of the last round
    latest: dict[str, Aggregate] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # the last of each site, by split/metric
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        self._board = _board(self.out / "tensorboard")
        self._log = EventLog(self.out)
        self._pause = self._flushed = 0.0

    def add(self, round: Round[Any]) -> RoundRow:
        """Record one round; its row in rounds.parquet is returned."""
        judged = aggregate(round.scores, self.task.score.better)
        row = self._row(round) | {f"{n}/{kind}": v for n, three in judged.items() for kind, v in three.items()}
        sites = list(_site_rows(round))
        self._log.append(row, sites)
        self._keep(row, sites)
        append_failures(self.out, round.failures)
        self._plot(round, row)
        # A file of all rounds is written anew each time: seldom enough to cost half a hundredth of the run.
        if time.monotonic() - self._flushed > 200 * self._pause:
            self.flush()
        return row

    def _row(self, round: Round[Any]) -> dict[str, Any]:
        traffic = round.traffic
        return {
            "round": round.number,
            "seconds": round.seconds,
            "sites": len(round.cohort),
            "absent": len(round.absent),
            "left_out": sum(
                len(incident.sites) for incident in round.failures if incident.action is FailureAction.LEFT_OUT
            ),
            "failures": len(round.failures),
            "seconds_lost": sum(incident.seconds for incident in round.failures),
            "loss": round.loss,
            "bytes_up": sum(traffic.up.values()),
            "bytes_down": sum(traffic.down.values()),
            "bytes_between": sum(traffic.between.values()),
            **{f"server/{name}": value for name, value in round.metrics.items()},
        }

    def _plot(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        curves = {name: value for name, value in row.items() if name != "round" and value is not None}
        curves |= {f"sites/{s.site}/{s.split}/{s.metric}": s.value for s in round.scores}
        # One event for all: hundreds of sites would take add_scalar, which goes through a pipe, a tenth of a round.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in curves.items()]
        self._board.write_event(Event(wall_time=time.time(), step=round.number, summary=Summary(value=values)))

    def _keep(self, row: RoundRow, sites: Sequence[SiteRow]) -> None:
        """Count a round in."""
        self.number = row["round"]
        total = self.totals
        self.totals = Totals(
            total.up + row["bytes_up"],
            total.down + row["bytes_down"],
            total.between + row["bytes_between"],
            total.seconds + row["seconds"],
        )
        if not any(split in EVALUATED_SPLITS for _, _, _, split, *_ in sites):
            return
        self.scores, self.latest = {}, {}
        for _, site, _, split, metric, value in sites:
            if split is not None:
                self.scores.setdefault(site, {})[f"{split}/{metric}"] = value
        for column, value in row.items():
            name, _, kind = column.rpartition("/")
            if kind in AGGREGATES and name.startswith(("inside/", "outside/")):
                self.latest.setdefault(name, {})[kind] = value

    def rewind(self, number: int) -> float:
        """Forget what came after round `number`, from which the run goes on, and say how many seconds that took.

        Failures stay noted.
        """
        seconds = sum(row["seconds"] for row, _ in self._log if row["round"] > number)
        self._log.rewind(number)
        self.number, self.latest, self.scores, self.totals = 0, {}, {}, Totals()
        for row, sites in self._log:
            self._keep(row, sites)
        self._board.close()
        self._board = _board(self.out / "tensorboard", number + 1)
        return float(seconds)

    def sync(self) -> None:
        """What was added is safe from a power cut."""
        self._log.sync()

    def flush(self) -> None:
        """Put all that was added on the disk; a reader finds either the old file or the new, never a torn one."""
        start = time.monotonic()
        self._log.tables()
        self._board.flush()
        self._flushed = time.monotonic()
        self._pause = self._flushed - start

    def close(self, status: str, facts: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
        """Flush, and write summary.json; the summary is returned."""
        self.flush()
        self._board.close()
        self._log.close()
        totals = self.totals
        summary = {
            "schema_version": 1,
            "status": status,
            **facts,
            "rounds": self.number,
            "digest": digest,
            "metric": self.chosen,
            "direction": direction(self.chosen, self.task.score.better),
            "metrics": self.latest,
            "sites": self._last_of_sites(),
            "bytes": {"up": totals.up, "down": totals.down, "between_sites": totals.between},
            "seconds": round(totals.seconds, 3),
            "failures": summarize_failures(self.out),
        }
        write_json(self.out / "summary.json", summary)
        return summary

    def _last_of_sites(self) -> dict[str, dict[str, Any]]:
        sites: dict[str, dict[str, Any]] = {s: {"role": "inside"} for s in self.task.inside}
        sites |= {s: {"role": "outside"} for s in self.task.outside}
        return {site: found | self.scores.get(site, {}) for site, found in sites.items()}


def _board(folder: Path, first: int = 0) -> Any:
    """A file of TensorBoard events; what older files tell of steps from `first` on is void where that is given.

    Written here and now: a thread that writes behind a run's back leaves it waiting when the disk is full.
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
    for way, sizes in vars(round.traffic).items():
        for site, size in sizes.items():
            yield [round.number, site, "inside", None, f"bytes_{way}", float(size)]
