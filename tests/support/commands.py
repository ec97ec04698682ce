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


def until(found: Callable[[], Any], seconds: float = 90) -> Any:
    """What `found` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.5)
    return value


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "raysim", *words]


@contextmanager
def playing(*words: str, verb: str = "run") -> Iterator[subprocess.Popen[str]]:
    """A run that does not outlive the test, however that ends."""
    with subprocess.Popen(command(verb, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            if run.poll() is None:
                run.terminate()
                run.communicate(timeout=60)


def done(*words: str, cwd: Path) -> Any:
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=100, check=False, cwd=cwd, env=wide)
