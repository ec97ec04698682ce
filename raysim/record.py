"""What a run leaves behind: tables of rounds and sites, TensorBoard events, and the summary that scripts read."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from raysim.checkpoint import Totals
from raysim.types import Round, Score, Task

SITE_COLUMNS = ("round", "site", "role", "split", "metric", "value")
Better = Mapping[str, Literal["higher", "lower"]]
Aggregate = dict[str, float]  # mean (of sites), weighted (by cases), worst (site)


def aggregate(scores: Iterable[Score], better: Better) -> dict[str, Aggregate]:
    """For each `role/split/metric`: the plain mean over sites, the mean weighted by cases, and the worst site."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        if score.split != "train":
            groups.setdefault(f"{score.role}/{score.split}/{score.metric}", []).append(score)
    result = {}
    for name, group in sorted(groups.items()):
        values = np.array([score.value for score in group])
        worst = values.max() if direction(name, better) == "lower" else values.min()
        weighted = np.average(values, weights=[max(score.cases, 1) for score in group])
        result[name] = {"mean": float(values.mean()), "weighted": float(weighted), "worst": float(worst)}
    return result


def direction(name: str, better: Better) -> Literal["higher", "lower"]:
    """Which way `role/split/metric` improves, as the task declares it for the metric."""
    return better[name.split("/", 2)[-1].removesuffix("@global")]


@dataclass
class Recorder:
    """Writes a run's folder as the rounds come; what was added is on the disk after `flush`, whatever comes next."""

    out: Path
    task: Task
    chosen: str  # role/split/metric
    rounds: list[dict[str, Any]] = field(default_factory=list)
    sites: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, Aggregate] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        self._board = SummaryWriter(str(self.out / "tensorboard"))
        self._pause = self._flushed = 0.0

    def add(self, round: Round[Any]) -> dict[str, Any]:
        """Record one round; its row in rounds.parquet is returned."""
        judged = aggregate(round.scores, self.task.score.better)
        if judged:
            self.latest, self.scores = judged, round.scores
        row = self._row(round) | {f"{n}/{kind}": v for n, three in judged.items() for kind, v in three.items()}
        self.rounds.append(row)
        self.sites.extend(_site_rows(round))
        self.totals = Totals(
            self.totals.up + row["bytes_up"],
            self.totals.down + row["bytes_down"],
            self.totals.between + row["bytes_between"],
            self.totals.seconds + round.seconds,
        )
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
            "failures": 0,
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
        self._board.file_writer.add_summary(Summary(value=values), round.number)

    def flush(self) -> None:
        """Put all that was added on the disk; a reader finds either the old file or the new, never a torn one."""
        start = time.monotonic()
        rounds = pd.DataFrame(self.rounds, columns=None if self.rounds else ["round"])
        sites = pd.DataFrame(self.sites, columns=list(SITE_COLUMNS))
        _write_table(self.out / "rounds.parquet", rounds)
        _write_table(self.out / "sites.parquet", sites)
        self._board.flush()
        self._flushed = time.monotonic()
        self._pause = self._flushed - start

    def close(self, status: str, facts: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
        """Flush, and write summary.json; the summary is returned."""
        self.flush()
        self._board.close()
        totals = self.totals
        summary = {
            "schema_version": 1,
            "status": status,
            **facts,
            "rounds": self.rounds[-1]["round"] if self.rounds else 0,
            "digest": digest,
            "metric": self.chosen,
            "direction": direction(self.chosen, self.task.score.better),
            "metrics": self.latest,
            "sites": self._last_of_sites(),
            "bytes": {"up": totals.up, "down": totals.down, "between_sites": totals.between},
            "seconds": round(totals.seconds, 3),
        }
        write_json(self.out / "summary.json", summary)
        return summary

    def _last_of_sites(self) -> dict[str, dict[str, Any]]:
        sites: dict[str, dict[str, Any]] = {s: {"role": "inside"} for s in self.task.inside}
        sites |= {s: {"role": "outside"} for s in self.task.outside}
        for score in self.scores:
            sites[score.site][f"{score.split}/{score.metric}"] = score.value
        return sites


def _site_rows(round: Round[Any]) -> Iterable[dict[str, Any]]:
    for score in round.scores:
        kept = asdict(score)
        yield {"round": round.number, **{name: kept[name] for name in SITE_COLUMNS[1:]}}
    for way, sizes in asdict(round.traffic).items():
        for site, size in sizes.items():
            values = ("inside", None, f"bytes_{way}", float(size))
            yield {"round": round.number, "site": site, **dict(zip(SITE_COLUMNS[2:], values, strict=True))}


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), partial)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all; a number that is not finite becomes null."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
