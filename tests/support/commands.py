"""The commands of raysim as processes, and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A run on two client actors, too long to end before a test stops it.
LONG = (
    *("rounds=100000", "task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2", "resources.client_actors=2"),
)


def until(found: Callable[[], Any], seconds: float = 90, every: float = 0.2) -> Any:
    """The value of `found` once it is true; its last value after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(every)
    return value


def lines_of(path: Path) -> int:
    """The number of complete lines in a file; 0 if there is none."""
    return path.read_text().count("\n") if path.exists() else 0


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "raysim", *words]


@contextmanager
def running(*words: str, verb: str = "run") -> Iterator[subprocess.Popen[str]]:
    """A command that is ended with the test, however the test ends."""
    with subprocess.Popen(command(verb, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)


def execute(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A finished command, with tables wide enough for their rows."""
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=100, check=False, cwd=cwd, env=wide)
