"""The log of a run: a line per round, appended as it ends; the tables are made from it, whatever their length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.core.atomic_io import write_text
from raysim.core.results import FailureAction, FailureEvent

RoundRow = dict[str, Any]
SiteRow = list[Any]  # the columns of SITES
SITES = pa.schema(
    [("round", pa.int64()), *((n, pa.string()) for n in ("site", "role", "split", "metric")), ("value", pa.float64())]
)
BATCH = 10_000  # rows of sites.parquet that are put together: memory must not grow with the number of rounds


class EventLog:
    """`log.jsonl` in a run's folder: after a crash it holds every round that had ended."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "log.jsonl"
        self._file = self.path.open("a")

    def append(self, row: RoundRow, sites: list[SiteRow]) -> None:
        """Add a round, for good."""
        self._file.write(json.dumps([row, sites]) + "\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def __iter__(self) -> Iterator[tuple[RoundRow, list[SiteRow]]]:
        """Each round; what a crash left unfinished at the end is passed over."""
        with self.path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind(self, number: int) -> None:
        """Drop the rounds after `number`."""
        kept = [json.dumps(entry) for entry in self if entry[0]["round"] <= number]
        self._file.close()
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a")

    def tables(self) -> None:
        """Write rounds.parquet and sites.parquet; a reader finds either the old ones or the new, never a torn one."""
        rounds: list[RoundRow] = []
        _write_table(self.out / "sites.parquet", SITES, self._site_tables(rounds))
        frame = pd.DataFrame(rounds, columns=None if rounds else ["round"])
        table = pa.Table.from_pandas(frame, preserve_index=False)
        _write_table(self.out / "rounds.parquet", table.schema, [table])

    def _site_tables(self, rounds: list[RoundRow]) -> Iterator[pa.Table]:
        """The rows of sites, some at a time; those of the rounds are put into `rounds`."""
        rows: list[SiteRow] = []
        for row, sites in self:
            rounds.append(row)
            rows += sites
            if len(rows) >= BATCH:
                yield _site_table(rows)
                rows = []
        yield _site_table(rows)

    def close(self) -> None:
        self._file.close()


def append_failures(out: Path, incidents: Iterable[FailureEvent]) -> None:
    """Add what went wrong to failures.jsonl, a line each."""
    lines = [json.dumps(asdict(incident)) + "\n" for incident in incidents]
    if lines:
        with (out / "failures.jsonl").open("a") as file:
            file.writelines(lines)


def summarize_failures(out: Path) -> dict[str, Any]:
    """What failures.jsonl adds up to: how many incidents, replies that were left out, seconds of work lost."""
    path = out / "failures.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    noted = [json.loads(line) for line in lines if line.endswith("\n")]  # a crash may have left the last one torn
    left_out = sum(len(entry["sites"]) for entry in noted if entry["action"] == FailureAction.LEFT_OUT)
    return {
        "incidents": len(noted),
        "left_out": left_out,
        "seconds_lost": round(sum(entry["seconds"] for entry in noted), 3),
    }


def _site_table(rows: list[SiteRow]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(SITES)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SITES, strict=True)], schema=SITES)


def _write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for table in tables:
            writer.write_table(table)
    os.replace(partial, path)
