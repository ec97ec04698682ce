"""Shared code of the benchmarks: seconds between the output lines of a command, and facts about the machine."""

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
    """A parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return made


def publish(found: dict[str, Any], table: Table, file: str | None) -> None:
    """Print the table, with the machine and versions below it, and write the figures as JSON if `file` is given."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    table.caption = f"{found['cores']} cores, load {found['load_before']} before; {versions}"
    Console().print(table)
    if file:
        Path(file).write_text(json.dumps(found, indent=2) + "\n")


def steady(arguments: Sequence[str], warm: int = WARM) -> float:
    """Seconds of a steady round of a command: the median without the first `warm` rounds and the last (evaluated)."""
    return statistics.median(round_seconds(arguments)[warm:-1])


def round_seconds(arguments: Sequence[str]) -> list[float]:
    """Seconds of each round of a command, between its lines; the first from the start of the command."""
    return [end - start for start, end in pairwise([0.0, *(second for second, _ in round_lines(arguments))])]


def round_lines(arguments: Sequence[str]) -> list[tuple[float, str]]:
    """Each line of the end of a round in the output of a command, with the seconds since its start.

    If the command fails, its last lines are printed and the benchmark ends.
    """
    output: list[str] = []
    ended: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        alarm = threading.Timer(DEADLINE, process.kill)  # NVFlare may wait forever for a lost client
        alarm.start()
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if re.match(r"round +\d+/", line):
                ended.append((time.perf_counter() - start, line))
        code = process.wait()
        alarm.cancel()
    if code:
        sys.exit(f"{''.join(output[-50:])}\n{' '.join(arguments)} failed with exit code {code}")
    return ended


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def machine() -> dict[str, Any]:
    """Facts that the figures depend on, without the name of the machine."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def missed(figures: dict[str, dict[str, float]], limits: dict[str, float]) -> bool:
    """Whether the median of a measured figure is above its limit."""
    return any(figures[name]["median"] > limit for name, limit in limits.items() if name in figures)


def spread_table(
    title: str, rows: dict[str, str], figures: dict[str, dict[str, float]], limits: dict[str, float]
) -> Table:
    """A table row for each measured figure: its description, median, lowest and highest value, and limit."""
    table = Table("figure", title=title)
    for column in ("median", "lowest", "highest", "limit"):
        table.add_column(column, justify="right")
    for name in (name for name in rows if name in figures):
        limit = f"{limits[name]:g}" if name in limits else ""
        table.add_row(rows[name], *(f"{value:.3f}" for value in figures[name].values()), limit)
    return table
