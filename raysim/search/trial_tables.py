"""The tables of a search's trials: trials.parquet, rounds.parquet, best.yaml, and TensorBoard's hyper-parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams

from raysim.config.resolve import resolve, to_mapping
from raysim.core.atomic_io import replacing, write_text
from raysim.core.numeric import is_finite_number
from raysim.reporting.search_console import test_columns
from raysim.search.objectives import BEST_PREFIX
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import (
    TrialRecord,
    federation_directories,
    logged_rounds,
    trial_directory,
)

CUMULATIVE_COLUMNS = ("round", "spent", "bytes")  # of a record's last metrics; trials.parquet has columns for them


def write_tables(
    spec: SearchSpec, records: Sequence[TrialRecord], best: Sequence[TrialRecord], ties: Sequence[TrialRecord]
) -> None:
    """Write trials.parquet, rounds.parquet and best.yaml, each atomically. `ties` have the value of the best trial."""
    _write_parquet(spec.out / "trials.parquet", [_trial_row(record) for record in records])
    _write_parquet(spec.out / "rounds.parquet", list(_round_rows(spec, records)))
    if best:
        write_text(spec.out / "best.yaml", _best_config(spec, best[0], ties))


def _trial_row(record: TrialRecord) -> dict[str, Any]:
    keys = {key: repr(list(value)) if isinstance(value, tuple) else value for key, value in record.values.items()}
    return {
        "trial": record.number,
        "status": record.reported_status,
        **keys,
        "rounds": record.rounds,
        "seconds": record.seconds,
        "bytes": record.last.get("bytes"),
        **{name: value for name, value in record.last.items() if name not in CUMULATIVE_COLUMNS},
        **{f"best {name}": value for name, value in record.best.items()},
        "lineage": record.lineage,
        "digest": " ".join(f"{name}:{digest}" if name else digest for name, digest in record.digests.items()),
        "cause": record.cause,
    }


def _round_rows(spec: SearchSpec, records: Sequence[TrialRecord]) -> Iterator[dict[str, Any]]:
    for record in records:
        for name, directory in federation_directories(trial_directory(spec.out, record.number)).items():
            for row in logged_rounds(directory):
                yield {"trial": record.number, "federation": name, **row}


def _best_config(spec: SearchSpec, record: TrialRecord, ties: Sequence[TrialRecord]) -> str:
    """The text of best.yaml: the configuration that repeats the trial, with its results as comments."""
    variants = spec.variants_of(record.values)
    name = next((name for name in variants if name in record.digests), next(iter(variants)))
    averaged = any(each.holdout for each in variants.values()) or spec.folds is not None
    if averaged:  # the final model is trained on all sites, with the splits of the table
        config = resolve(spec.space.apply(spec.base, {k: v for k, v in record.values.items() if k != "holdout"}))
    else:
        config = spec.config(record.values, variants[name])
    # without a held-out site there may be no outside site
    held_out = any(each.holdout for each in variants.values())
    metric = None if held_out else spec.metric or spec.base.get("metric")
    mapping = to_mapping(config) | {"backend": spec.base.get("backend", "ray"), "metric": metric}
    lines = [f"# Trial {record.number} of the search: {record.status} after {record.rounds} rounds."]
    if ties:
        numbers = ", ".join(str(each.number) for each in ties)
        lines.append(f"# Other trials with this value: {numbers}. This file has the trial with the lowest number.")
    lines += [f"# {column}: {record.last[column]:.6g}" for column in _result_columns(spec, record)]
    lines += _meaning(spec, record, name, config.seed)
    return "\n".join(lines) + "\n" + yaml.safe_dump(mapping, sort_keys=False)


def _result_columns(spec: SearchSpec, record: TrialRecord) -> list[str]:
    return list(dict.fromkeys([each.column for each in spec.objectives] + test_columns(record, spec.objectives)))


def _meaning(spec: SearchSpec, record: TrialRecord, name: str, seed: int) -> list[str]:
    """Comments on the federations of the mean, and on the one that the file repeats: `name`, with `seed`."""
    variants, lines = spec.variants_of(record.values), []
    if len(variants) > 1:
        lines.append(f"# These values are means over {len(variants)} federations: {', '.join(variants)}.")
        if record.cause:
            lines.append(f"# {' '.join(record.cause.split())}")
    if record.lineage:
        return [*lines, "# Continued from another trial's state (lineage.jsonl). This file has only its last values."]
    if variants[name].holdout:
        return [*lines, f"# Evaluated on held-out sites; this run has seed {seed} and trains on all sites."]
    if spec.folds is not None:
        return [*lines, f"# Evaluated by cross-validation; this run has seed {seed} and the splits of the table."]
    if len(variants) > 1:
        own = _compared_row(spec, trial_directory(spec.out, record.number) / name)
        stems = {column: column.removeprefix(BEST_PREFIX) for column in _result_columns(spec, record)}
        values = [f"{stem} {own[stem]:.6g}" for stem in stems.values() if is_finite_number(own.get(stem))]
        lines.append(f"# This file has seed {seed}. The values with this seed: {', '.join(values)}.")
    if record.done:
        lines.append(f"# digest{f' ({name})' if name else ''}: {record.digests[name]}")
    return lines


def _compared_row(spec: SearchSpec, directory: Path) -> dict[str, Any]:
    """The row of the round of a federation that is compared: its best round, or its last one."""
    rows = {row["round"]: row for row in logged_rounds(directory)}
    last = rows[max(rows)] if rows else {}
    number = last.get("best_round") if spec.compared_round == "best" else None
    return rows.get(number, last)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        types = {type(value) for value in frame[name] if value is not None and value == value}
        if len(types) > 1 and not types <= {int, float}:  # a choice among text and numbers
            frame[name] = frame[name].map(str, na_action="ignore")
    with replacing(path) as partial:
        frame.to_parquet(partial, index=False)


def write_tensorboard_hparams(spec: SearchSpec, record: TrialRecord) -> None:
    """Write the trial's keys and objectives to the file that TensorBoard's hyper-parameter view reads."""
    keys = {
        key: value if isinstance(value, bool | int | float | str) else repr(value)
        for key, value in record.values.items()
    }
    columns = [each.column for each in spec.objectives]
    values = {column: record.last[column] for column in columns if is_finite_number(record.last.get(column))}
    if not values or not keys:
        return
    directory = trial_directory(spec.out, record.number) / "tensorboard"
    directory.mkdir(exist_ok=True)
    writer = EventsWriter(str(directory / "events"), ".hparams")
    for summary in hparams(keys, values):
        writer.write_event(Event(wall_time=time.time(), summary=summary))
    writer.close()
