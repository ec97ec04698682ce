"""Cost of more sites and more rounds: seconds per site and round, and the memory of the actors.

python benchmarks/sites.py [SITES ...] [--rounds N] [--plot FILE] [--json FILE]

The federation of overhead.py with a single step of 8 images at each site, which shows the overhead of the engine.
Memory is the private memory of a process (RssAnon), measured during the run, without shared memory and mapped files.
A last run has 300 sites and 40 rounds, with evaluation and a checkpoint every 5 rounds. Its median memory over the last
five rounds is compared with rounds 6 to 10, which shows growth with the rounds.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measuring import WARM, machine, parser, publish, round_lines
from overhead import ACTORS, ENGINE
from rich.table import Table

SITES = (16, 64, 256, 1000, 4000)
ROUNDS = 13
SMALL = 64  # smallest number of sites for comparisons: with fewer, the fixed part of a round is visible
LONG_SITES, LONG_ROUNDS, EVERY = 300, 40, 5
PAUSE, SEARCH = 0.1, 1.0  # seconds between two measurements of the memory, and between two searches for actors
ROLES = {"server": re.compile(rb"ray::(server|Server)"), "client": re.compile(rb"ray::(client-\d+\[|ClientActor)")}
MB, KB = 1e6, 1e3
ROWS = {
    "seconds": "seconds of a round per site",
    "client": "memory of the largest client actor, additional MB",
    "long_server": "memory of the server actor, last rounds / rounds 6 to 10",
    "long_client": "memory of the largest client actor, last rounds / rounds 6 to 10",
    "site_kb": "memory of the server actor per site, kB",
}
OPEN_DATA_MB = 268.0  # an actor keeps up to 256 MiB of its sites' data open
LIMITS = {"seconds": 1.3, "client": OPEN_DATA_MB, "long_server": 1.03, "long_client": 1.03, "site_kb": 100.0}


@dataclass(frozen=True)
class Look:
    """The memory of an actor in bytes, and its time in seconds since the start."""

    second: float
    role: str
    pid: int
    size: int


def main() -> int:
    """Measure, print, plot, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds and memory of a raysim round by the number of sites")
    options.add_argument("sites", nargs="*", type=int, default=SITES, help=f"default: {' '.join(map(str, SITES))}")
    options.add_argument(
        "--rounds", type=int, default=LONG_ROUNDS, help=f"rounds of the long run (default: {LONG_ROUNDS})"
    )
    options.add_argument("--plot", default=Path(__file__).with_suffix(".png"), help="default: sites.png in this folder")
    args = options.parse_args()
    if args.rounds < 3 * EVERY:
        options.error(f"--rounds {args.rounds}: expected {3 * EVERY} or more")
    found = machine()
    found["sites"] = [measured(sites) for sites in sorted(set(args.sites))]
    found["long"] = long_run(LONG_SITES, args.rounds)
    found["figures"] = limited_figures(found["sites"], found["long"])
    draw(found["sites"], args.plot)
    publish(found, by_sites(found["sites"]), None)
    publish(found, limits(found["figures"], found["sites"], args.rounds), args.json)
    return int(any(found["figures"][name] > limit for name, limit in LIMITS.items()))


def measured(sites: int) -> dict[str, float]:
    """Seconds of a steady round, in total and per site, and the maximum memory of the actors, in bytes."""
    every = [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
    ends, looks = watched([*ENGINE, *federation(sites), *every])
    seconds = [end - start for start, end in pairwise(ends)][WARM - 1 : -1]
    round = statistics.median(seconds)
    most = {role: max(look.size for look in looks if look.role == role) for role in ROLES}
    return {"sites": sites, "round": round, "seconds": round / sites, **most}


def long_run(sites: int, rounds: int) -> dict[str, dict[str, float]]:
    """Memory of each role, in bytes, over rounds 6 to 10 and over the last five; each has one evaluated round."""
    every = [f"rounds={rounds}", f"evaluate_every={EVERY}", f"checkpoint_every={EVERY}"]
    ends, looks = watched([*ENGINE, *federation(sites), *every])
    spans = {"early": (ends[EVERY - 1], ends[2 * EVERY - 1]), "late": (ends[-EVERY - 1], ends[-1])}
    return {role: {name: typical(looks, role, *span) for name, span in spans.items()} for role in ROLES}


def federation(sites: int) -> list[str]:
    return [f"task.data.sites={sites}", "task.data.cases=8"]


def typical(looks: Sequence[Look], role: str, start: float, end: float) -> float:
    """The median memory of the largest actor of a role between two times."""
    sizes: dict[int, list[int]] = {}
    for look in looks:
        if look.role == role and start <= look.second <= end:
            sizes.setdefault(look.pid, []).append(look.size)
    return max(statistics.median(each) for each in sizes.values())


def watched(arguments: Sequence[str]) -> tuple[list[float], list[Look]]:
    """The end of each round of a command, in seconds, and the measured memory of its actors."""
    with watching() as looks:
        ends = [second for second, _ in round_lines(arguments)]
    missing = [role for role in ROLES if role not in {look.role for look in looks}]
    if missing:
        sys.exit(f"no {missing[0]} actor was found among the processes of {' '.join(arguments)}")
    return ends, looks


@contextmanager
def watching() -> Iterator[list[Look]]:
    """Measures the memory of every actor of the commands in the block; the list grows during the block."""
    looks: list[Look] = []
    done = threading.Event()
    thread = threading.Thread(target=look_on, args=(looks, done))
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()


def look_on(looks: list[Look], done: threading.Event) -> None:
    start = searched = time.perf_counter()
    known: dict[int, str] = {}
    while not done.wait(PAUSE):
        now = time.perf_counter()
        if now - searched > SEARCH:
            known |= actors(known)
            searched = now
        for pid, role in known.items():
            with suppress(OSError, KeyError):  # it has ended
                looks.append(Look(now - start, role, pid, 1024 * int(status(pid)["RssAnon"].split()[0])))


def actors(known: dict[int, str]) -> dict[int, str]:
    """`known`, and the roles of further actors among the descendants of this process, by their Ray process titles."""
    found = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(OSError, KeyError):
            title = b"" if pid in known else Path(f"/proc/{pid}/cmdline").read_bytes()
            roles = [role for role, pattern in ROLES.items() if pattern.match(title)]
            if roles and os.getpid() in above(pid):
                found[pid] = roles[0]
    return found


def above(pid: int) -> Iterator[int]:
    """The ancestors of process `pid`, its parent first."""
    while pid > 1:
        pid = int(status(pid)["PPid"])
        yield pid


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status by name. Raises OSError if the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limited_figures(rows: Sequence[dict[str, float]], long: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures with limits: the most sites over the fewest sites from 64 on, and late rounds over early rounds."""
    few, many = compared(rows)
    growth = (many["server"] - few["server"]) / max(many["sites"] - few["sites"], 1)
    return {
        "seconds": many["seconds"] / few["seconds"],
        "client": (many["client"] - few["client"]) / MB,
        "site_kb": growth / KB,
        **{f"long_{role}": sizes["late"] / sizes["early"] for role, sizes in long.items()},
    }


def compared(rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    return next((row for row in rows if row["sites"] >= SMALL), rows[-1]), rows[-1]


def by_sites(rows: Sequence[dict[str, float]]) -> Table:
    """A table row for each number of sites."""
    table = Table("sites", title=f"one step of 8 images at a site, {ACTORS} client actors")
    for column in ("round, s", "round / sites, ms", "server, MB", "largest client, MB"):
        table.add_column(column, justify="right")
    for row in rows:
        sizes = (f"{row[role] / MB:.1f}" for role in ROLES)
        table.add_row(str(row["sites"]), f"{row['round']:.3f}", f"{1000 * row['seconds']:.3f}", *sizes)
    return table


def limits(figures: dict[str, float], rows: Sequence[dict[str, float]], rounds: int) -> Table:
    """A table row for each figure with a limit."""
    few, many = compared(rows)
    title = f"{many['sites']} sites / {few['sites']}; and {rounds} rounds of {LONG_SITES} sites"
    table = Table("figure", title=title)
    for column in ("found", "limit"):
        table.add_column(column, justify="right")
    for name, meaning in ROWS.items():
        table.add_row(meaning, f"{figures[name]:.3f}", f"{LIMITS[name]:g}")
    return table


def draw(rows: Sequence[dict[str, float]], file: Any) -> None:
    """Two plots over the number of sites: milliseconds per site, and megabytes."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sites = [row["sites"] for row in rows]
    left.plot(sites, [1000 * row["seconds"] for row in rows], "o-", color="tab:blue")
    left.set(title="a steady round / sites", ylabel="ms")
    for role, color in zip(ROLES, ("tab:red", "tab:green"), strict=True):
        name = "server actor" if role == "server" else "largest client actor"
        right.plot(sites, [row[role] / MB for row in rows], "o-", color=color, label=name)
    right.set(title="private memory, highest", ylabel="MB")
    right.legend()
    for axes in (left, right):
        axes.set(xscale="log", xlabel="sites", ylim=(0, 1.1 * axes.get_ylim()[1]))
        axes.set_xticks(sites, [str(count) for count in sites])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
