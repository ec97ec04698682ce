"""Ray's errors in one line each, without the numbers of actors and processes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError

from raysim.core.errors import RunError

if TYPE_CHECKING:
    pass

STORAGE_FULL = (
    "there is no room left for what the sites send: give Ray a larger object store (ray start --object-store-memory) "
    "or a larger disk to spill to, or have fewer sites in a round (cohort)"
)


def storage_full_error(error: Exception) -> RunError:
    """What a run ends with when neither Ray's object store nor its disk takes any more."""
    return RunError(f"{STORAGE_FULL}. Ray says: {summarize(error)}")


def summarize(error: Any) -> str:
    """What Ray says of the cause, without the numbers of actor and process that it puts between."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not re.match(r"(\w+_)?(id|name|pid|ip|namespace): ", line)]
    text = " ".join(lines[:3]).partition("Some common causes")[0]  # what follows is the same whatever the cause
    return f"{type(error).__name__}: {text.strip().rstrip('.')}"


def remote_cause(error: RayError) -> str:
    """Of an exception over there the end of its traceback, which says what it was."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if isinstance(error, RayTaskError) and lines else summarize(error)
