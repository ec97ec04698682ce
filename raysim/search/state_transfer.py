"""What one trial hands over to another, in files: its rounds, states and memories (PBT), or only where it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raysim.core.atomic_io import write_text
from raysim.search.trial_store import ADOPTED, LINEAGE_FILE, PENDING_LINEAGE_FILE, federation_directories, lineage
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import LOG_FILE

POINTER_FILE = "pointer.json"
SINGLE_FEDERATION = "federation"  # the folder of a federation that is the only one, and has no name


def export_state(given: Path, number: int, folder: Path, round: int, *, whole: bool) -> None:
    """Put into `given` where trial `number` stands, and, if `whole`, what another needs to go on from there."""
    write_text(given / POINTER_FILE, json.dumps({"trial": number, "round": round}))
    for name, own in federation_directories(folder).items() if whole else ():
        theirs = given / (name or SINGLE_FEDERATION)
        newest = own / "checkpoints" / f"round_{round:04d}"
        shutil.copytree(newest, theirs / "checkpoints" / newest.name)
        kept = [entry for entry in read_jsonl(own / LOG_FILE) if entry[0]["round"] <= round]
        write_text(theirs / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in kept))


def import_state(
    given: Path, number: int, folder: Path, values: Mapping[str, Any], names: Collection[str]
) -> int | None:
    """Put what `given` holds into the folder of trial `number`, which goes on from there with `values`; that round.

    None where that is its own, or it has taken it already: its process was lost since, and its rounds are its own.
    """
    pointer = json.loads((given / POINTER_FILE).read_text())
    note = {"round": pointer["round"], "from": pointer["trial"], "values": dict(values)}
    complete_import(folder, names)
    if pointer["trial"] == number or lineage(folder)[-1:] == [json.loads(json.dumps(note))]:
        return None
    copies = folder / ADOPTED
    for name in names:
        shutil.copytree(given / (name or SINGLE_FEDERATION), copies / (name or SINGLE_FEDERATION))
    write_text(
        copies / PENDING_LINEAGE_FILE, json.dumps(note)
    )  # the last: what is whole here counts as taken, whoever puts it in place
    complete_import(folder, names)
    return int(pointer["round"])


def complete_import(folder: Path, names: Collection[str]) -> None:
    """Put in place what the trial in `folder` has taken over, or drop it if it was not copied whole.

    A process or a whole search may be lost anywhere in it: whoever comes next goes on.
    """
    copies = folder / ADOPTED
    if (copies / PENDING_LINEAGE_FILE).exists():
        whole = lineage(folder)
        write_text(folder / LINEAGE_FILE, "".join(json.dumps(note) + "\n" for note in whole))
        for name in names:
            _replace(folder / name, copies / (name or SINGLE_FEDERATION))
    _removed(copies)


def _replace(mine: Path, copy: Path) -> None:
    _removed(mine / "summary.json")
    for part in ("log.jsonl", "checkpoints"):
        if (copy / part).exists():  # else it is in its place already
            _removed(mine / part)
            mine.mkdir(parents=True, exist_ok=True)
            (copy / part).rename(mine / part)


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
