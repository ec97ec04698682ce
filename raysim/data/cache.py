"""Arrays that are worked out once and shared by all processes of a machine, by memory mapping."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np

from raysim.core.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 2  # part of every key: raise it when what is stored, or how it is made, changes


def cache_folder(given: str | None = None) -> Path:
    """`given`, else `$RAYSIM_CACHE`, else `raysim` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = str(given or os.environ.get("RAYSIM_CACHE") or home / "raysim")
    if "://" in asked:
        raise ConfigError(f"the cache {asked}: expected a folder of each node, for what is kept there is read in place")
    return Path(asked).expanduser().absolute()


def fingerprint(path: str) -> list[int | str]:
    """What changes when the file at this path or URL does. Raises ConfigError where there is none."""
    try:
        if "://" not in path:
            facts = os.stat(path)
            return [path, facts.st_size, facts.st_mtime_ns]
        store, name = fsspec.core.url_to_fs(path)
        return [path, str(store.checksum(name))]
    except Exception as error:  # each store has its own errors
        raise ConfigError(f"cannot look at {path}: {error}; check the table and task.data.root") from error


def digest(key: object) -> str:
    """The name of the entry for `key`, which is anything that JSON can hold."""
    text = json.dumps([FORMAT, key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(folder: Path, name: str, make: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of the entry `name` (a `digest`) in `folder`, from `make` if there are none yet.

    They are mapped copy-on-write: a change stays in this process. Of two processes that make the same entry
    one wins and both read it. Raises ConfigError if the entry cannot be written, or is damaged.
    """
    entry = folder / name
    if not entry.is_dir():
        _write(entry, make())
    try:
        return {path.stem: _mapped(path) for path in sorted(entry.glob("*.npy"))}
    except (OSError, ValueError) as error:
        raise ConfigError(f"the prepared data in {entry} is damaged ({error}); remove that folder") from error


def _write(entry: Path, arrays: Mapping[str, Array]) -> None:
    unfinished: str | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.mkdtemp(prefix="unfinished-", dir=entry.parent)
        for name, array in arrays.items():
            np.save(Path(unfinished, f"{name}.npy"), array, allow_pickle=False)
        _publish(unfinished, entry)
    except OSError as error:
        raise ConfigError(
            f"cannot keep prepared data in {entry.parent}: {error.strerror or error}; "
            "make room there, or choose another folder with task.data.cache=DIR or RAYSIM_CACHE"
        ) from error
    finally:
        if unfinished:
            shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: str, entry: Path) -> None:
    """Gives a finished folder its name, in one step; another process may have been faster."""
    try:
        os.rename(unfinished, entry)
    except OSError:
        if not entry.is_dir():
            raise


def _mapped(path: Path) -> Array:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    # What has no bytes cannot be mapped.
    array: Array = np.load(path, mmap_mode="c" if 0 not in shape else None)
    return array
