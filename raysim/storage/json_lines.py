"""Files with a JSON value per line, to which lines are appended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[Any]:
    """The value of each complete line; none if there is no such file.

    A line that a crash left torn is skipped: the last one, or one to which a resumed run has appended.
    """
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                with suppress(ValueError):
                    yield json.loads(line)
