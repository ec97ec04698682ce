"""Limits the size of the cache of prepared data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from raysim.core.errors import ConfigError

KEY = re.compile("[0-9a-f]{64}")  # the name of an entry


def limit_cache(folder: Path, used: Collection[str], limit: float) -> None:
    """Remove the least recently used entries of `folder` until all entries take at most `limit` GB.

    Processes that have mapped a removed entry can still read it. Raises ConfigError if the entries `used`, which are
    never removed, take more.
    """
    sizes = {path.name: _size(path) for path in folder.iterdir() if path.is_dir()}
    needed = sum(sizes.get(key, 0) for key in used)
    if needed > limit * 1e9:
        raise ConfigError(
            f"task.data.cache_limit={limit:g}: the prepared data of this run take {needed / 1e9:.3g} GB or more; set a "
            "larger limit, or a smaller task.data.patches_per_image or task.data.size"
        )
    others = sorted(
        (path for path in map(folder.joinpath, set(sizes) - set(used)) if KEY.fullmatch(path.name)), key=_used
    )
    excess = sum(sizes.values()) - limit * 1e9
    for path in others:
        if excess <= 0:
            return
        shutil.rmtree(path, ignore_errors=True)
        excess -= sizes[path.name]


def _size(entry: Path) -> int:
    with suppress(OSError):  # another process has removed it
        return sum(path.stat().st_size for path in entry.iterdir())
    return 0


def _used(entry: Path) -> float:
    with suppress(OSError):
        return entry.stat().st_mtime
    return 0.0
