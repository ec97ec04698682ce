"""The log of a run: one line per round, appended when the round ends. The tables are made from it in batches."""

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

from raysim.core.atomic_io import replacing, write_text
from raysim.core.errors import RunError
from raysim.core.results import FailureAction, FailureEvent
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import FAILURES_FILE, LOG_FILE

RoundRow = dict[str, Any]
SiteRow = list[Any]  # the columns of SITES
SITES = pa.schema(
    [("round", pa.int64()), *((n, pa.string()) for n in ("site", "role", "split", "metric")), ("value", pa.float64())]
)
BATCH_ROWS = 10_000  # of sites.parquet, written together: memory must not grow with the number of rounds


class EventLog:
    """`log.jsonl` of a run. After a crash it contains every round that had ended."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / LOG_FILE
        self._file = self.path.open("a")

    def append(self, row: RoundRow, sites: list[SiteRow]) -> None:
        """Add a round."""
        self._file.write(json.dumps([row, sites]) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all rounds are on the disk."""
        os.fsync(self._file.fileno())

    def __iter__(self) -> Iterator[tuple[RoundRow, list[SiteRow]]]:
        """Yields each round with its rows of sites. Raises RunError for a line of another kind."""
        for entry in read_jsonl(self.path):
            match entry:
                case [{"round": int()} as row, list(sites)]:
                    yield row, sites
                case _:
                    raise RunError(f"{self.path} has the line {str(entry)[:60]!r}, which is not a round; remove it")

    def rewind(self, number: int) -> None:
        """Delete the rounds after `number`."""
        kept = [json.dumps(entry) for entry in self if entry[0]["round"] <= number]
        self._file.close()
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a")

    def tables(self) -> None:
        """Write rounds.parquet and sites.parquet, each atomically."""
        rounds: list[RoundRow] = []
        _write_table(self.directory / "sites.parquet", SITES, self._site_tables(rounds))
        frame = pd.DataFrame(rounds, columns=None if rounds else ["round"])
        table = pa.Table.from_pandas(frame, preserve_index=False)
        _write_table(self.directory / "rounds.parquet", table.schema, [table])

    def _site_tables(self, rounds: list[RoundRow]) -> Iterator[pa.Table]:
        """Yields the rows of sites in batches, and appends the rows of rounds to `rounds`."""
        rows: list[SiteRow] = []
        for row, sites in self:
            rounds.append(row)
            rows += sites
            if len(rows) >= BATCH_ROWS:
                yield _site_table(rows)
                rows = []
        yield _site_table(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def append_failures(directory: Path, failures: Iterable[FailureEvent]) -> None:
    """Append each failure as a line to failures.jsonl.

    The Recorder calls it. The command calls it after the server actor, which has the Recorder, is lost.
    """
    lines = [json.dumps(asdict(failure)) + "\n" for failure in failures]
    if lines:
        with (directory / FAILURES_FILE).open("a") as file:
            file.writelines(lines)


def summarize_failures(directory: Path) -> dict[str, Any]:
    """The totals of failures.jsonl: failures, replies that were left out, seconds of work lost."""
    failures = list(read_jsonl(directory / FAILURES_FILE))
    left_out = sum(len(failure["sites"]) for failure in failures if failure["action"] == FailureAction.LEFT_OUT)
    return {
        "incidents": len(failures),
        "left_out": left_out,
        "seconds_lost": round(sum(failure["seconds"] for failure in failures), 3),
    }


def _site_table(rows: list[SiteRow]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(SITES)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SITES, strict=True)], schema=SITES)


def _write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for table in tables:
            writer.write_table(table)
