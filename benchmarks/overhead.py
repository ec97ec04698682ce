"""What the engine costs: a round of raysim on Ray against the same local work in a plain loop, in one sitting.

python benchmarks/overhead.py [--repeats N] [--json FILE]
"""

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
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ACTORS = 2
ROUNDS = 13
STEADY = slice(3, 12)  # rounds 4 to 12: data are open and kernels chosen before, and the last round is judged
FEDERATION = [
    *("task.data.sites=64", "task.data.outside=[]", "task.data.cases=16", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[32, 32]", "task.network.channels=[7, 14, 28]", "task.network.num_res_units=0"),
    *("task.batch_size=8", "algorithm=fedavg", "algorithm.epochs=1", f"resources.clients={ACTORS}"),
    *(f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"),
]
RUN = [sys.executable, "-m", "raysim", "run"]
ENGINE = [*RUN, *FEDERATION]
SCRIPT = [sys.executable, str(Path(__file__).with_name("plain_loop.py"))]
LOOP, FUSED = [*SCRIPT, *FEDERATION], [*SCRIPT, "--fused", *FEDERATION]
PACKAGES = ("raysim", "ray", "torch", "monai", "numpy")
ROWS = {
    "loop": "plain loop, one process, one thread: s per round",
    "fused": "the same with the fused optimiser that raysim takes: s per round",
    "engine": f"raysim on Ray, {ACTORS} client actors of 1 CPU: s per round",
    "ratio": f"raysim / (plain loop / {ACTORS})",
    "fused_ratio": f"raysim / (fused plain loop / {ACTORS})",
    "floor": f"{ACTORS} plain loops at once / plain loop: the machine's own floor of that ratio",
    "first_round": "from `raysim run` to the end of the first round, default task: s",
}
LIMITS = {"fused_ratio": 1.3, "first_round": 25.0}


def main() -> int:
    """Measure, print, and write JSON where asked; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description="seconds of a raysim round against a plain PyTorch loop")
    parser.add_argument("--repeats", type=int, default=3, help="engine runs, each between two loops (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    found = machine() | {"repeats": args.repeats, "figures": measure(args.repeats)}
    Console().print(table(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")
    return int(any(found["figures"][name]["median"] > limit for name, limit in LIMITS.items()))


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """The rows of the table, each with its median, lowest and highest over the repeats."""
    loops, fused, engines, crowds, firsts = [steady(LOOP)], [steady(FUSED)], [], [], []
    for _ in range(repeats):
        engines.append(steady(ENGINE))
        fused.append(steady(FUSED))
        loops.append(steady(LOOP))
        with ThreadPoolExecutor(ACTORS) as pool:
            crowds.append(statistics.mean(pool.map(steady, [LOOP] * ACTORS)))
        firsts.append(round_ends(RUN)[0])
    # Against the loops just before and just after: what else the machine does changes by the minute.
    around, around_fused = ([statistics.mean(pair) for pair in pairwise(times)] for times in (loops, fused))
    values = {
        "loop": loops,
        "fused": fused,
        "engine": engines,
        "ratio": [engine / (loop / ACTORS) for engine, loop in zip(engines, around, strict=True)],
        "fused_ratio": [engine / (loop / ACTORS) for engine, loop in zip(engines, around_fused, strict=True)],
        "floor": [crowd / loop for crowd, loop in zip(crowds, around, strict=True)],
        "first_round": firsts,
    }
    return {name: spread(values[name]) for name in ROWS}


def steady(command: Sequence[str]) -> float:
    """Seconds of a steady round of `command`: the median of rounds 4 to 12, from line to line."""
    ends = [0.0, *round_ends(command)]
    return statistics.median([end - start for start, end in pairwise(ends)][STEADY])


def round_ends(command: Sequence[str]) -> list[float]:
    """Seconds from the start of `command` to each line in which it says that a round has ended."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        ends = [time.perf_counter() - start for line in process.stdout if re.match(r"round +\d+/", line)]
        if process.wait():
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return ends


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


def table(found: dict[str, Any]) -> Table:
    """The figures, and under them what they were measured on."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    caption = f"{found['cores']} cores, load {found['load_before']} before, {found['repeats']} repeats; {versions}"
    result = Table("figure", title="64 sites of 16 images, 32x32; U-Net of 7,433 parameters", caption=caption)
    for column in ("median", "lowest", "highest", "limit"):
        result.add_column(column, justify="right")
    for name, meaning in ROWS.items():
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        result.add_row(meaning, *(f"{value:.3f}" for value in found["figures"][name].values()), limit)
    return result


if __name__ == "__main__":
    sys.exit(main())
