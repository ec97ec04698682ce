"""Runs commands of raysim as processes, and waits for conditions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A run on two client actors that does not end before a test stops it.
LONG = (
    *("rounds=100000", "task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=1", "task.data.test=2", "task.batch_size=2", "resources.client_actors=2"),
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


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "raysim", *arguments]


@contextmanager
def running(*arguments: str, verb: str = "run") -> Iterator[subprocess.Popen[str]]:
    """A running command, which is terminated at the end of the block."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(verb, *arguments), **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)


def execute(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A finished command. The console is wide enough for the rows of its tables."""
    env = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=100, check=False, cwd=cwd, env=env
    )
