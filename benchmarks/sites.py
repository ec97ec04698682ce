"""What more sites and more rounds cost: seconds of a site's part of a round, and the memory of the actors.

python benchmarks/sites.py [SITES ...] [--rounds N] [--plot FILE] [--json FILE]

The federation of overhead.py with a single step of 8 images at each site, so that what the engine adds to a site shows.
Memory is what the kernel counts as a process's own (RssAnon), looked at while the run goes on: shared memory and
mapped files are not in it. In a last run, of 300 sites for 40 rounds, judged and saved every 5 rounds, its median over
rounds 6 to 10 stands beside that over the last five: what grows with the rounds shows there.
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

SITES = (16, 64, 256, 1000)
ROUNDS = 13
SMALL = 64  # sites from which on figures are compared: of fewer, the fixed part of a round shows
LONG_SITES, LONG_ROUNDS, EVERY = 300, 40, 5
PAUSE, SEARCH = 0.1, 1.0  # seconds between two looks at the memory, and between two at which actors there are
ROLES = {"server": re.compile(rb"ray::(server:|Server)"), "client": re.compile(rb"ray::(client-\d+\[|ClientActor)")}
MB, KB = 1e6, 1e3
ROWS = {
    "seconds": "seconds of a site's part of a round",
    "client": "memory of the largest client actor",
    "long_server": "memory of the server actor, last rounds / rounds 6 to 10",
    "long_client": "memory of the largest client actor, last rounds / rounds 6 to 10",
    "site_kb": "memory of the server actor for each site, kB",
}
LIMITS = {"seconds": 1.3, "client": 1.25, "long_server": 1.03, "long_client": 1.03, "site_kb": 250.0}


@dataclass(frozen=True)
class Look:
    """The memory of an actor, in bytes, so many seconds after the start."""

    second: float
    role: str
    pid: int
    size: int


def main() -> int:
    """Measure, print, draw, and write JSON where asked; 1 if a limit is missed."""
    options = parser("seconds and memory of a raysim round by the number of sites")
    options.add_argument("sites", nargs="*", type=int, default=SITES, help=f"default: {' '.join(map(str, SITES))}")
    options.add_argument("--rounds", type=int, default=LONG_ROUNDS, help=f"of the long run (default: {LONG_ROUNDS})")
    options.add_argument("--plot", default=Path(__file__).with_suffix(".png"), help="default: sites.png beside this")
    args = options.parse_args()
    if args.rounds < 3 * EVERY:
        options.error(f"--rounds {args.rounds}: expected {3 * EVERY} or more")
    found = machine()
    found["sites"] = [measured(sites) for sites in sorted(set(args.sites))]
    found["long"] = long_run(LONG_SITES, args.rounds)
    found["figures"] = judged(found["sites"], found["long"])
    draw(found["sites"], args.plot)
    publish(found, by_sites(found["sites"]), None)
    publish(found, limits(found["figures"], found["sites"], args.rounds), args.json)
    return int(any(found["figures"][name] > limit for name, limit in LIMITS.items()))


def measured(sites: int) -> dict[str, float]:
    """Seconds of a steady round, whole and for each site, and the most memory of the actors, in bytes."""
    every = [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
    ends, looks = watched([*ENGINE, *federation(sites), *every])
    seconds = [end - start for start, end in pairwise(ends)][WARM - 1 : -1]
    round = statistics.median(seconds)
    most = {role: max(look.size for look in looks if look.role == role) for role in ROLES}
    return {"sites": sites, "round": round, "seconds": round / sites, **most}


def long_run(sites: int, rounds: int) -> dict[str, dict[str, float]]:
    """Memory of each role, in bytes, over rounds 6 to 10 and over the last five; both have one that is judged."""
    every = [f"rounds={rounds}", f"evaluate_every={EVERY}", f"checkpoint_every={EVERY}"]
    ends, looks = watched([*ENGINE, *federation(sites), *every])
    spans = {"early": (ends[EVERY - 1], ends[2 * EVERY - 1]), "late": (ends[-EVERY - 1], ends[-1])}
    return {role: {name: typical(looks, role, *span) for name, span in spans.items()} for role in ROLES}


def federation(sites: int) -> list[str]:
    return [f"task.data.sites={sites}", "task.data.cases=8"]


def typical(looks: Sequence[Look], role: str, start: float, end: float) -> float:
    """The median memory between two points in time, of the largest actor of a role."""
    sizes: dict[int, list[int]] = {}
    for look in looks:
        if look.role == role and start <= look.second <= end:
            sizes.setdefault(look.pid, []).append(look.size)
    return max(statistics.median(each) for each in sizes.values())


def watched(words: Sequence[str]) -> tuple[list[float], list[Look]]:
    """When each round of `words` ended, and the memory of its actors until then."""
    with watching() as looks:
        ends = [second for second, _ in round_lines(words)]
    missing = [role for role in ROLES if role not in {look.role for look in looks}]
    if missing:
        sys.exit(f"no {missing[0]} actor was seen among the processes of {' '.join(words)}")
    return ends, looks


@contextmanager
def watching() -> Iterator[list[Look]]:
    """The memory of every actor of the commands that run in the block, as it is looked at."""
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
    """The role of each process below this one that Ray's title names as an actor, beside those that are known."""
    found = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(OSError, KeyError):
            title = b"" if pid in known else Path(f"/proc/{pid}/cmdline").read_bytes()
            roles = [role for role, pattern in ROLES.items() if pattern.match(title)]
            if roles and os.getpid() in above(pid):
                found[pid] = roles[0]
    return found


def above(pid: int) -> Iterator[int]:
    """The processes that `pid` comes from, its parent first."""
    while pid > 1:
        pid = int(status(pid)["PPid"])
        yield pid


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process, by name. Raises OSError if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def judged(rows: Sequence[dict[str, float]], long: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures that have limits: the most sites over the fewest from 64 on, and late rounds over early ones."""
    few, many = compared(rows)
    growth = (many["server"] - few["server"]) / max(many["sites"] - few["sites"], 1)
    return {
        "seconds": many["seconds"] / few["seconds"],
        "client": many["client"] / few["client"],
        "site_kb": growth / KB,
        **{f"long_{role}": sizes["late"] / sizes["early"] for role, sizes in long.items()},
    }


def compared(rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    return next((row for row in rows if row["sites"] >= SMALL), rows[-1]), rows[-1]


def by_sites(rows: Sequence[dict[str, float]]) -> Table:
    """A line for each number of sites."""
    table = Table("sites", title=f"one step of 8 images at a site, {ACTORS} client actors")
    for column in ("round, s", "round / sites, ms", "server, MB", "largest client, MB"):
        table.add_column(column, justify="right")
    for row in rows:
        sizes = (f"{row[role] / MB:.1f}" for role in ROLES)
        table.add_row(str(row["sites"]), f"{row['round']:.3f}", f"{1000 * row['seconds']:.3f}", *sizes)
    return table


def limits(figures: dict[str, float], rows: Sequence[dict[str, float]], rounds: int) -> Table:
    """A line for each figure that has a limit."""
    few, many = compared(rows)
    title = f"{many['sites']} sites / {few['sites']}; and {rounds} rounds of {LONG_SITES} sites"
    table = Table("figure", title=title)
    for column in ("found", "limit"):
        table.add_column(column, justify="right")
    for name, meaning in ROWS.items():
        table.add_row(meaning, f"{figures[name]:.3f}", f"{LIMITS[name]:g}")
    return table


def draw(rows: Sequence[dict[str, float]], file: Any) -> None:
    """Two plots over the number of sites: milliseconds for a site, and megabytes."""
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
