"""Files with one JSON value per line, to which lines are appended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yields the value of each complete line; nothing if the file does not exist.

    A line that was cut off by a crash is skipped: the last line, or a line to which a resumed run has appended.
    """
    if not path.is_file():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                with suppress(ValueError, RecursionError):
                    yield json.loads(line)
