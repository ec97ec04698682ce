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

from raysim.config.merge import plain, resolve
from raysim.core.atomic_io import write
from raysim.search.objectives import Objective, finite, is_number
from raysim.search.spec import Search
from raysim.search.trial_store import Entry, federations, folder_of, follow, rows, save

TAIL = ("round", "spent", "bytes")


class Books:
    """The trials of a search as they go; the tables are written anew now and then, and at the end."""

    def __init__(self, search: Search, entries: Sequence[Entry], keep: str) -> None:
        self.search, self.keep = search, keep
        self.entries = {entry.number: entry for entry in entries}
        self.earlier = {entry.number for entry in entries if not entry.unfinished}  # ended before this session
        self._written = self._pause = 0.0

    def open(self, number: int, values: Mapping[str, Any]) -> None:
        """A new trial begins."""
        _swept(folder_of(self.search.out, number))  # of one whose trial.json was torn; it may have had other values
        self.entries[number] = Entry(number, values)
        save(self.search.out, self.entries[number])

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """A round of it has ended, or it has failed for good."""
        entry = self.entries[number]
        # Not from Tune: under PBT it has the new values before the trial has the state that they go with.
        follow(entry, folder_of(self.search.out, number))
        if "failed" in result:
            entry.status, entry.cause = "failed", str(result["failed"])
            return
        entry.rounds, entry.seconds = int(result["round"]), float(result["spent"])
        entry.last = {**entry.last, **_metrics(result)}
        entry.best = dict(entry.best)
        for each in self.search.objectives:
            value, best = result.get(each.column), entry.best.get(each.column)
            if finite(value) and (best is None or each.beats(value, best)):
                entry.best[each.column] = value
        if result.get("last"):
            entry.status, entry.digests = "done", dict(result["digests"])
        save(self.search.out, entry)  # a search that is killed goes on with what was best so far

    def end(self, number: int, cause: str = "") -> None:
        """Tune has ended it: by its last round, by the scheduler, or for the failure that `cause` tells."""
        entry = self.entries[number]
        if cause:
            entry.status, entry.cause = "failed", cause
        elif entry.unfinished:
            entry.status = "stopped"
        save(self.search.out, entry)
        self._board(entry)
        self._forget()
        if time.monotonic() - self._written > 50 * self._pause:
            self.tables()

    def best(self) -> list[Entry]:
        """The best trial by the last round; of several objectives all that no other beats in each. Those that went
        through all rounds come before those that were stopped."""
        known = [entry for entry in self.entries.values() if self._values(entry) is not None]
        pool = [entry for entry in known if entry.status == "done"] or known
        if len(self.search.objectives) > 1:
            return pareto(pool, self.search.objectives)
        first = self.search.objectives[0]
        pool.sort(key=lambda entry: entry.last[first.column], reverse=first.better == "higher")
        return pool[:1]

    def _values(self, entry: Entry) -> list[float] | None:
        values = [entry.last.get(each.column) for each in self.search.objectives]
        if entry.status == "failed" or not all(map(finite, values)):
            return None
        return [float(value) for value in values if value is not None]

    def _forget(self) -> None:
        """Drop the checkpoints of trials that have ended and are not among the best, where that is wished."""
        if self.keep == "all":
            return
        best = {entry.number for entry in self.best()}
        for entry in self.entries.values():
            if not entry.unfinished and entry.number not in best:
                for folder in federations(folder_of(self.search.out, entry.number)).values():
                    for old in (folder / "checkpoints").glob("round_*"):
                        _swept(old)

    def _board(self, entry: Entry) -> None:
        """The trial's keys and what it came to, where TensorBoard's hyper-parameters look for them."""
        keys = {
            key: value if isinstance(value, bool | int | float | str) else repr(value)
            for key, value in entry.values.items()
        }
        columns = [each.column for each in self.search.objectives]
        found = {column: entry.last[column] for column in columns if finite(entry.last.get(column))}
        if not found or not keys:
            return
        folder = folder_of(self.search.out, entry.number) / "tensorboard"
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"), ".hparams")
        for summary in hparams(keys, found):
            board.write_event(Event(wall_time=time.time(), summary=summary))
        board.close()

    def tables(self) -> None:
        """Write trials.parquet, rounds.parquet and best.yaml; a reader finds the old ones or the new."""
        start = time.monotonic()
        out = self.search.out
        _table(out / "trials.parquet", [self._row(entry) for entry in self._sorted()])
        _table(out / "rounds.parquet", list(self._rounds()))
        best = self.best()
        if best:
            write(out / "best.yaml", self._best(best[0]))
        self._written = time.monotonic()
        self._pause = self._written - start

    def _sorted(self) -> list[Entry]:
        return sorted(self.entries.values(), key=lambda entry: entry.number)

    def _row(self, entry: Entry) -> dict[str, Any]:
        keys = {key: repr(list(value)) if isinstance(value, tuple) else value for key, value in entry.values.items()}
        final = {name: value for name, value in entry.last.items() if name not in TAIL}
        return {
            "trial": entry.number,
            "status": entry.state,
            **keys,
            "rounds": entry.rounds,
            "seconds": entry.seconds,
            "bytes": entry.last.get("bytes"),
            **final,
            **{f"best {name}": value for name, value in entry.best.items()},
            "lineage": entry.lineage,
            "digest": " ".join(f"{name}:{digest}" if name else digest for name, digest in entry.digests.items()),
            "cause": entry.cause,
        }

    def _rounds(self) -> Iterator[dict[str, Any]]:
        for entry in self._sorted():
            for name, folder in federations(folder_of(self.search.out, entry.number)).items():
                for row in rows(folder):
                    yield {"trial": entry.number, "federation": name, **row}

    def _best(self, entry: Entry) -> str:
        cells = self.search.cells_of(entry.values)
        name, cell = next(iter(cells.items()))
        held_out = any(other.holdout for other in cells.values())
        config = self.search.config(entry.values, cell)
        metric = None if held_out else self.search.base.get("metric")  # there may be no outside site then
        if held_out:  # a model for use is trained on all sites
            given = self.search.space.given(self.search.base, {k: v for k, v in entry.values.items() if k != "holdout"})
            config = resolve(given)
        lines = [f"# Trial {entry.number} of the search: {entry.status} after {entry.rounds} rounds."]
        lines += [f"# {each.column}: {entry.last[each.column]:.6g}" for each in self.search.objectives]
        if entry.lineage:
            lines.append(
                "# It took over another trial's state on the way (lineage.jsonl): these are its last values only."
            )
        elif held_out:
            lines.append("# Judged with sites held out; this run trains on all of them.")
        elif entry.status == "done":
            lines.append(f"# digest{f' ({name})' if name else ''}: {entry.digests[name]}")
        described = plain(config) | {"fleet": self.search.base.get("fleet", "ray"), "metric": metric}
        return "\n".join(lines) + "\n" + yaml.safe_dump(described, sort_keys=False)


def pareto(entries: Sequence[Entry], objectives: Sequence[Objective]) -> list[Entry]:
    """Those that no other beats: as good in every objective, and better in one."""

    def beaten(one: Entry, other: Entry) -> bool:
        pairs = [(each, one.last[each.column], other.last[each.column]) for each in objectives]
        return not any(each.beats(a, b) for each, a, b in pairs) and any(each.beats(b, a) for each, a, b in pairs)

    first = objectives[0]
    front = [entry for entry in entries if not any(beaten(entry, other) for other in entries)]
    return sorted(front, key=lambda entry: entry.last[first.column], reverse=first.better == "higher")


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
    partial = path.with_suffix(".partial")
    frame.to_parquet(partial, index=False)
    partial.replace(path)


def _swept(folder: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(folder)
