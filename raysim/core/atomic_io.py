"""Atomic writes: a file has either its old or its new content, never a part of it."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path. The file there replaces `path` at the end of the block, or is removed if the block fails.

    Its name is random: in a folder of several users, others cannot put a link to another file there.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, atomically; a number that is not finite becomes null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
