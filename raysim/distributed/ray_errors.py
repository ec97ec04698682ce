"""Errors of Ray as one readable line, and a full object store as a RunError."""

from __future__ import annotations

import re

from ray.exceptions import RayTaskError

from raysim.core.errors import RunError

STORAGE_FULL = (
    "there is no space left for the payloads of the sites: give Ray a larger object store "
    "(ray start --object-store-memory) or a larger disk for spilled objects, or use fewer sites in a round (cohort)"
)
ID_LINE = r"(\w+_)?(id|name|pid|ip|namespace): "  # the lines in which Ray names actor, process and node
GENERIC_ADVICE = "Some common causes"  # starts a paragraph that is the same for every cause


def summarize(error: BaseException) -> str:
    """The cause in one line: type and message, without the ids of actors and processes.

    For an exception in a remote task, it is the last line of the traceback.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, RayTaskError) and any(lines):
        return next(line for line in reversed(lines) if line)
    lines = [line for line in lines if line and not re.match(ID_LINE, line)]
    text = " ".join(lines[:3]).partition(GENERIC_ADVICE)[0]
    return f"{type(error).__name__}: {text.strip().rstrip('.')}"


def storage_full_error(error: Exception) -> RunError:
    """The error that ends a run when neither Ray's object store nor its disk has space left."""
    return RunError(f"{STORAGE_FULL}. Ray reports: {summarize(error)}")
