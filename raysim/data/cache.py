"""A cache of prepared arrays on the local disk, shared by the processes of a node through memory mapping."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_files import files_of
from raysim.data.image_formats import is_folder

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT_VERSION = 4  # part of every key: increase it when the stored arrays, or their computation, change


def cache_folder(path: str | None = None) -> Path:
    """`path`, else `$RAYSIM_CACHE`, else `raysim` in the user's cache folder. Raises ConfigError for a URL."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = str(path or os.environ.get("RAYSIM_CACHE") or user_cache / "raysim")
    if "://" in folder:
        raise ConfigError(
            f"task.data.cache or RAYSIM_CACHE is {folder}; expected a local folder of each node, because arrays are "
            "memory-mapped"
        )
    return Path(folder).expanduser().absolute()


def fingerprint(path: str) -> list[int | str]:
    """A value that changes when a file of the image at this path or URL changes. Raises ConfigError if none exists."""
    try:
        if "://" not in path:
            facts = [(file, os.stat(file)) for file in files_of(path)]
            return [value for file, found in facts for value in (file, found.st_size, found.st_mtime_ns)]
        store, name = fsspec.core.url_to_fs(path)
        names = sorted(store.find(name)) if is_folder(path) else [name]
        return [path, *(str(store.checksum(each)) for each in names)]
    except Exception as error:  # each store raises errors of other types
        raise ConfigError(f"cannot access {path}: {error}; check the table and task.data.root") from error


def cache_key(value: object) -> str:
    """The name of the cache entry for `value`, which must be JSON-serializable."""
    text = json.dumps([FORMAT_VERSION, value], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_or_create(folder: Path, key: str, create: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of the entry `key` (a `cache_key`) in `folder`; `create` computes them if there is no entry.

    The arrays are mapped copy-on-write, so a change is visible only in this process. If two processes create the same
    entry, one of the two is kept and both read it. Raises ConfigError if the entry cannot be written, or is damaged.
    """

    def write(unfinished: Path) -> None:
        for name, array in create().items():
            np.save(unfinished / f"{name}.npy", array, allow_pickle=False)

    return load_or_write(folder, key, write)


def load_or_write(folder: Path, key: str, write: Callable[[Path], None]) -> dict[str, Array]:
    """Like `load_or_create`, but `write` writes the files `<name>.npy` of the entry into the folder it receives."""
    entry = folder / key
    if not entry.is_dir():
        _write(entry, write)
    with suppress(OSError):  # the entry of another user, or a read-only file system
        os.utime(entry)  # the time of the last use, for `limit_cache`
    try:
        return {path.stem: _memory_map(path) for path in sorted(entry.glob("*.npy"))}
    except (OSError, ValueError) as error:
        raise ConfigError(f"the prepared data in {entry} is damaged ({error}); remove that folder") from error


class ArrayWriter:
    """Writes one array to a .npy file in parts along its first axis, so that only a part is in memory."""

    def __init__(self, path: Path, dtype: Any, shape: Sequence[int] = ()) -> None:
        self._file = path.open("wb")
        self._dtype, self._shape, self._length = np.dtype(dtype), tuple(shape), 0
        self._write_header()

    def append(self, part: Array) -> None:
        """Append the rows of `part`, (n, *shape)."""
        np.ascontiguousarray(part, self._dtype).tofile(self._file)
        self._length += len(part)

    def close(self) -> None:
        """Complete the file."""
        self._file.seek(0)
        self._write_header()  # numpy reserves space for any length of the first axis
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._length, *self._shape)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def _write(entry: Path, write: Callable[[Path], None]) -> None:
    unfinished: str | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.mkdtemp(prefix="unfinished-", dir=entry.parent)
        write(Path(unfinished))
        _publish(unfinished, entry)
    except OSError as error:
        raise ConfigError(
            f"cannot store prepared data in {entry.parent}: {error.strerror or error}; "
            "free disk space there, or choose another folder with task.data.cache=DIR or RAYSIM_CACHE"
        ) from error
    finally:
        if unfinished:
            shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: str, entry: Path) -> None:
    """Renames a finished folder to its final name, atomically; another process may have created the entry first."""
    try:
        os.rename(unfinished, entry)
    except OSError:
        if not entry.is_dir():
            raise


def _memory_map(path: Path) -> Array:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    # An empty array cannot be memory-mapped.
    array: Array = np.load(path, mmap_mode="c" if 0 not in shape else None)
    return array
