"""Checkpoints: everything needed to resume a run, in JSON and safetensors. Each is written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from raysim.core.errors import RunError
from raysim.core.results import CaseScores, ResumePoint
from raysim.storage.serialization import decode, encode

# What a file that raysim did not write may raise.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError, SafetensorError)
CHECKPOINTS_KEPT = 2  # the last one, and the previous one in case the last is damaged


def write(
    folder: Path,
    number: int,
    state: Any,
    client_states: Mapping[str, Any],
    *,
    cases: Sequence[CaseScores] = (),
    kept: Collection[int | None] = (),
) -> Path:
    """Write `folder/round_NNNN` after round `number`; returns the path. `cases` are those of the last evaluation.

    Then delete all other checkpoints except the newest and those of the rounds `kept`. The folder gets its final name
    when all of its files are on the disk. Each client state has its own file, so `client_states` may load the client
    states one at a time.
    """
    partial = _partial(folder, number)
    (partial / "client_states").mkdir(parents=True)
    sums = _write_tree(partial, "state", state) | _write_tree(partial, "cases", tuple(cases))
    for site, client_state in client_states.items():
        sums |= _write_tree(partial, f"client_states/{site}", client_state)
    index = {"round": number, "sites": list(client_states), "sha256": sums}
    _write(partial / "checkpoint.json", json.dumps(index, indent=1).encode())
    return _complete(partial, folder, number, kept)


def copy(path: Path, folder: Path) -> Path:
    """Write the content of the checkpoint `path` to `folder`, with hard links if the file system supports them.

    Returns the path of the copy.
    """
    number = round_of(path)
    partial = _partial(folder, number)
    shutil.copytree(path, partial, copy_function=_link)
    return _complete(partial, folder, number)


def _partial(folder: Path, number: int) -> Path:
    """The path at which a checkpoint is written before it gets its final name."""
    for torn in folder.glob(".round_*"):  # left by a crash or a full disk
        shutil.rmtree(torn, ignore_errors=True)
    return folder / f".round_{number:04d}.{os.getpid()}"


def _complete(partial: Path, folder: Path, number: int, kept: Collection[int | None] = ()) -> Path:
    final = path_of(folder, number)
    shutil.rmtree(final, ignore_errors=True)  # exists, damaged, if the run resumed from an older checkpoint
    partial.rename(final)
    _sync(folder)
    newest = [round_of(path) for path in newest_first(folder)][:CHECKPOINTS_KEPT]
    keep_only(folder, {*kept, *newest})
    return final


def keep_only(folder: Path, kept: Collection[int | None]) -> None:
    """Delete the checkpoints of all rounds that are not in `kept`."""
    for path in newest_first(folder):
        if round_of(path) not in kept:
            shutil.rmtree(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def read(path: Path, trusted: Collection[str] = ()) -> ResumePoint[Any]:
    """The resume point in `path`. Dataclasses may be imported from the modules in `trusted`, see `decode`.

    Raises RunError if a file is missing or has changed.
    """
    try:
        index = json.loads((path / "checkpoint.json").read_bytes())
        _inside(path, [*index["sha256"], *(f"client_states/{site}" for site in index["sites"])])
        for name, expected in index["sha256"].items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected:
                raise RunError(f"checkpoint {path} is damaged: {name} has changed since it was written")
        number, state = int(index["round"]), _read_tree(path, "state", trusted)
    except UNREADABLE as error:
        raise RunError(f"checkpoint {path} cannot be read: {error}") from error
    return ResumePoint(number, state, _ClientStates(path, index["sites"], trusted))


def read_cases(path: Path) -> tuple[CaseScores, ...]:
    """The values by case in the checkpoint `path`, which `read` has verified."""
    found: tuple[CaseScores, ...] = _read_tree(path, "cases", ())
    return found


def _inside(path: Path, names: Sequence[str]) -> None:
    """Raises RunError for a name that leads outside the checkpoint's directory."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(f"checkpoint {path} names the file {name} outside its folder, so raysim did not write it")


class _ClientStates(Mapping[str, Any]):
    """The client states of a checkpoint. Each is read on access, because together they may not fit into memory."""

    def __init__(self, path: Path, sites: Sequence[str], trusted: Collection[str]) -> None:
        self._path, self._sites, self._trusted = path, sites, trusted

    def __getitem__(self, site: str) -> Any:
        if site not in self._sites:
            raise KeyError(site)
        try:
            return _read_tree(self._path, f"client_states/{site}", self._trusted)
        except UNREADABLE as error:
            raise RunError(f"the state of site {site} in checkpoint {self._path} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def newest_first(folder: Path) -> Iterator[Path]:
    """Yields the complete checkpoints in `folder`, the newest first."""
    yield from sorted(folder.glob("round_*"), key=round_of, reverse=True)


def path_of(folder: Path, number: int) -> Path:
    """The path of the checkpoint after round `number`."""
    return folder / f"round_{number:04d}"


def round_of(path: Path) -> int:
    """The round after which the checkpoint `path` was written."""
    return int(path.name.removeprefix("round_"))


def _write_tree(folder: Path, name: str, tree: Any) -> dict[str, str]:
    described, arrays = encode(tree)
    whole = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    files = {f"{name}.json": json.dumps(described).encode(), f"{name}.safetensors": save(whole)}
    for file, content in files.items():
        _write(folder / file, content)
    return {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}


def _read_tree(folder: Path, name: str, trusted: Collection[str]) -> Any:
    described = json.loads((folder / f"{name}.json").read_bytes())
    return decode(described, load_file(folder / f"{name}.safetensors"), trusted)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    # A rename survives a power failure only when the directory itself is on the disk.
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
