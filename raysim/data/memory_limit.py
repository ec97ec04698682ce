"""The limit on the memory for reading a file: a small file may decode to more than the memory of a machine."""

from __future__ import annotations

import math
import os

from raysim.core.errors import ConfigError
from raysim.core.formatting import format_bytes

ANY_FILE = 750_000_000  # bytes of memory that a file of any size may take
MAX_RATIO = 100  # bytes of memory per byte of a larger file
LARGEST = 6_000_000_000  # bytes of memory for any file
MEMORY_VARIABLE = "RAYSIM_FILE_MEMORY_GB"  # environment variable that replaces these limits


def check_memory(needed: float, stored: int) -> None:
    """Raises ConfigError if `needed` bytes of memory are more than reading a file of `stored` bytes may take."""
    limit = memory_limit(stored)
    if needed > limit:
        raise ConfigError(
            f"would take {format_bytes(needed)} of memory to read, but a file of {format_bytes(stored)} may take "
            f"{format_bytes(limit)}; if you trust the file, set the environment variable "
            f"{MEMORY_VARIABLE}={math.ceil(needed / 1e9)} on every node"
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
