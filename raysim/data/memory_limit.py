"""The limit on the memory for reading a file: a small file may decode to more than the memory of a machine."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.core.formatting import format_bytes

ANY_FILE = 750_000_000  # bytes of memory that a file of any size may take
MAX_RATIO = 100  # bytes of memory per byte of a larger file
LARGEST = 6_000_000_000  # bytes of memory for any file
MAX_TABLE_BYTES = 250_000_000  # of a table, uncompressed
# Bytes of memory while a table is read and checked: the largest that were measured.
MEMORY_PER_BYTE, MEMORY_PER_CELL, MEMORY_PER_ROW = 16, 8, 200
MEMORY_VARIABLE = "RAYSIM_FILE_MEMORY_GB"  # environment variable that replaces these limits


def check_memory(needed: float, stored: int) -> None:
    """Raises ConfigError if `needed` bytes of memory are more than reading a file of `stored` bytes may take."""
    limit = memory_limit(stored)
    if needed > limit:
        raise ConfigError(
            f"would take {format_bytes(needed)} of memory to read, but a file of {format_bytes(stored)} may take "
            f"{format_bytes(limit)}; {override_advice(needed)}"
        )


def override_advice(needed: float) -> str:
    """The advice to allow `needed` bytes of memory."""
    return (
        f"if you trust the file, set the environment variable {MEMORY_VARIABLE}={math.ceil(needed / 1e9)} on every node"
    )


def check_table_memory(size: int, cells: int, rows: int, stored: int) -> None:
    """Raises ConfigError if a table with `size` bytes of cells takes more memory than a file of `stored` bytes may."""
    check_memory(MEMORY_PER_BYTE * size + MEMORY_PER_CELL * cells + MEMORY_PER_ROW * rows, stored)


def check_table_size(size: int) -> None:
    """Raises ValueError if a table with `size` bytes, uncompressed, is too large."""
    if size > MAX_TABLE_BYTES:
        raise ValueError(
            f"it has more than {MAX_TABLE_BYTES:,} bytes uncompressed; expected one row per case, with names of files"
        )


def memory_limit(stored: int) -> float:
    """The bytes of memory that reading a file of `stored` bytes may take."""
    given = os.environ.get(MEMORY_VARIABLE)
    if not given:
        return min(LARGEST, max(ANY_FILE, MAX_RATIO * stored))
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes > 0:
        raise ConfigError(f"the environment variable {MEMORY_VARIABLE} is {given!r}; expected gigabytes, such as 8")
    return gigabytes * 1e9


@contextmanager
def limited_memory(allowed: float) -> Iterator[None]:
    """In the block, allocations fail when this process takes `allowed` more bytes of memory than at the start of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
