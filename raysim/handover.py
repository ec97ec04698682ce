"""What one trial hands over to another, in files: its rounds, states and memories (PBT), or only where it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raysim.trials import federations, lineage
from raysim.whole import write

POINTER = "pointer.json"
ALONE = "federation"  # the folder of a federation that is the only one, and has no name


def give(given: Path, number: int, folder: Path, round: int, *, whole: bool) -> None:
    """Put into `given` where trial `number` stands, and, if `whole`, what another needs to go on from there."""
    write(given / POINTER, json.dumps({"trial": number, "round": round}))
    for name, own in federations(folder).items() if whole else ():
        theirs = given / (name or ALONE)
        newest = own / "checkpoints" / f"round_{round:04d}"
        shutil.copytree(newest, theirs / "checkpoints" / newest.name)
        lines = (own / "log.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)[0]["round"] <= round]
        write(theirs / "log.jsonl", "".join(kept))


def take(given: Path, number: int, folder: Path, values: Mapping[str, Any], names: Collection[str]) -> int | None:
    """Put what `given` holds into the folder of trial `number`, which goes on from there with `values`; that round.

    None where that is its own, or it has taken it already: its process was lost since, and its rounds are its own.
    """
    pointer = json.loads((given / POINTER).read_text())
    note = json.dumps({"round": pointer["round"], "from": pointer["trial"], "values": dict(values)})
    known = lineage(folder)[-1:] == [json.loads(note)]
    copies = folder / "adopted"  # stands from before the note until all is in its place
    if pointer["trial"] == number or (known and not copies.exists()):
        return None
    _removed(copies)
    for name in names:  # whole, before what they replace goes: this process may be lost meanwhile
        shutil.copytree(given / (name or ALONE), copies / (name or ALONE))
    if not known:  # before the state, so that a search that ends here does not take that for the trial's own
        with (folder / "lineage.jsonl").open("a") as file:
            file.write(note + "\n")
    for name in names:
        _replace(folder / name, copies / (name or ALONE))
    _removed(copies)
    return int(pointer["round"])


def _replace(mine: Path, copy: Path) -> None:
    mine.mkdir(parents=True, exist_ok=True)
    for part in ("summary.json", "log.jsonl", "checkpoints"):
        _removed(mine / part)
        if (copy / part).exists():
            (copy / part).rename(mine / part)


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
