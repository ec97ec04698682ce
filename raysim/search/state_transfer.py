"""The transfer of state between trials, in files: one trial exports its rounds, model and client states (PBT), another
imports them. Schedulers that only pause trials export a pointer to the round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raysim.core.atomic_io import write_text
from raysim.search.trial_store import (
    IMPORT_DIRECTORY,
    LINEAGE_FILE,
    PENDING_LINEAGE_FILE,
    federation_directories,
    lineage,
)
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import BEST, CHECKPOINTS, LOG_FILE, SUMMARY_FILE

POINTER_FILE = "pointer.json"
SINGLE_FEDERATION = "federation"  # the directory of a trial's only federation, which has no name


def export_state(target: Path, number: int, directory: Path, round: int, *, with_state: bool) -> None:
    """Write to `target` the round of trial `number`, and, `with_state`, what another trial needs to continue."""
    write_text(target / POINTER_FILE, json.dumps({"trial": number, "round": round}))
    for name, source in federation_directories(directory).items() if with_state else ():
        copy = target / (name or SINGLE_FEDERATION)
        checkpoint = source / CHECKPOINTS / f"round_{round:04d}"
        shutil.copytree(checkpoint, copy / CHECKPOINTS / checkpoint.name)
        if (source / BEST).exists():
            shutil.copytree(source / BEST, copy / BEST)
        entries = (entry for entry in read_jsonl(source / LOG_FILE) if entry[0]["round"] <= round)
        write_text(copy / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in entries))


def import_state(
    source: Path, number: int, directory: Path, values: Mapping[str, Any], federations: Collection[str]
) -> int | None:
    """Copy the state in `source` into `directory` of trial `number`, which continues with `values`; returns its round.

    Returns None if the state is from the trial itself, or if the trial has imported it before. In the second case its
    process was lost after the import, and the later rounds in its directory are valid.
    """
    pointer = json.loads((source / POINTER_FILE).read_text())
    note = {"round": pointer["round"], "from": pointer["trial"], "values": dict(values)}
    complete_import(directory, federations)
    if pointer["trial"] == number or lineage(directory)[-1:] == [json.loads(json.dumps(note))]:
        return None
    copies = directory / IMPORT_DIRECTORY
    for name in federations:
        shutil.copytree(source / (name or SINGLE_FEDERATION), copies / (name or SINGLE_FEDERATION))
    # Written last: with this file the copy is complete, and any process may move it to its place.
    write_text(copies / PENDING_LINEAGE_FILE, json.dumps(note))
    complete_import(directory, federations)
    return int(pointer["round"])


def complete_import(directory: Path, federations: Collection[str]) -> None:
    """Move a complete copy in `directory` to its place, or remove an incomplete copy.

    The process or the whole search may be lost at any point. The next process calls this again and completes it.
    """
    copies = directory / IMPORT_DIRECTORY
    if (copies / PENDING_LINEAGE_FILE).exists():
        notes = lineage(directory)
        write_text(directory / LINEAGE_FILE, "".join(json.dumps(note) + "\n" for note in notes))
        for name in federations:
            _replace_run(directory / name, copies / (name or SINGLE_FEDERATION))
    _remove(copies)


def _replace_run(run: Path, copy: Path) -> None:
    _remove(run / SUMMARY_FILE)
    for part in (LOG_FILE, BEST, CHECKPOINTS):
        if (copy / part).exists():  # otherwise it was moved before the process was lost
            _remove(run / part)
            run.mkdir(parents=True, exist_ok=True)
            (copy / part).rename(run / part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
