"""What the benchmarks share: seconds from line to line of what a command prints, and what they were measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DEADLINE = 900.0  # seconds for one command
WARM = 3  # rounds before the steady ones: data are open and kernels chosen
PACKAGES = ("raysim", "ray", "torch", "monai", "numpy")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", metavar="FILE", help="write the figures here too")
    return made


def publish(found: dict[str, Any], table: Table, file: str | None) -> None:
    """Print the table, with what it was measured on under it, and write the figures as JSON where asked."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    table.caption = f"{found['cores']} cores, load {found['load_before']} before; {versions}"
    Console().print(table)
    if file:
        Path(file).write_text(json.dumps(found, indent=2) + "\n")


def steady(words: Sequence[str], warm: int = WARM) -> float:
    """Seconds of a steady round of `words`: the median without the first `warm` and the last, which is judged."""
    return statistics.median(round_seconds(words)[warm:-1])


def round_seconds(words: Sequence[str]) -> list[float]:
    """Seconds of each round of `words`, from line to line: the first from the start of the command."""
    return [end - start for start, end in pairwise([0.0, *(second for second, _ in round_lines(words))])]


def round_lines(words: Sequence[str]) -> list[tuple[float, str]]:
    """Each line in which `words` says that a round has ended, with the seconds since the command's start.

    What else it says is shown only if it fails, which ends the benchmark.
    """
    said: list[str] = []
    ended: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        alarm = threading.Timer(DEADLINE, process.kill)  # NVFlare has been seen to wait for ever for a lost client
        alarm.start()
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if re.match(r"round +\d+/", line):
                ended.append((time.perf_counter() - start, line))
        code = process.wait()
        alarm.cancel()
    if code:
        sys.exit(f"{''.join(said[-50:])}\n{' '.join(words)} failed with exit code {code}")
    return ended


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def machine() -> dict[str, Any]:
    """What the figures depend on, without a name that tells whose machine it is."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def missed(figures: dict[str, dict[str, float]], limits: dict[str, float]) -> bool:
    """Whether the median of a figure that was measured is over its limit."""
    return any(figures[name]["median"] > limit for name, limit in limits.items() if name in figures)


def spread_table(
    title: str, rows: dict[str, str], figures: dict[str, dict[str, float]], limits: dict[str, float]
) -> Table:
    """A line for each figure that was measured: what it is, its median, lowest and highest, and its limit."""
    table = Table("figure", title=title)
    for column in ("median", "lowest", "highest", "limit"):
        table.add_column(column, justify="right")
    for name in (name for name in rows if name in figures):
        limit = f"{limits[name]:g}" if name in limits else ""
        table.add_row(rows[name], *(f"{value:.3f}" for value in figures[name].values()), limit)
    return table
