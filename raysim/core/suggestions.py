"""Names that a user writes: how they are found, and the nearest one that exists where they are not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def squash(name: str) -> str:
    """The name without case, underscores and dashes, by which names are compared."""
    return name.replace("_", "").replace("-", "").lower()


def did_you_mean(given: str, valid: Iterable[str], prefix: str = "") -> str:
    """` (did you mean '...'?)` where one of `valid` is close to `given`, else nothing; `prefix` goes before it."""
    by_name = {squash(name): name for name in valid}
    close = get_close_matches(squash(given), by_name, n=1, cutoff=0.5)
    return f" (did you mean '{prefix}{by_name[close[0]]}'?)" if close else ""
