"""The 'did you mean' suggestions for unknown names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def squash(name: str) -> str:
    """The name in lower case without underscores and dashes, for comparisons."""
    return name.replace("_", "").replace("-", "").lower()


def did_you_mean(given: str, valid: Iterable[str], prefix: str = "", cutoff: float = 0.5) -> str:
    """` (did you mean '...'?)` if one of `valid` is close to `given`, else empty; `prefix` precedes the name."""
    by_name = {squash(name): name for name in valid}
    close = get_close_matches(squash(given), by_name, n=1, cutoff=cutoff)
    return f" (did you mean '{prefix}{by_name[close[0]]}'?)" if close else ""
