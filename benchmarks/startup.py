"""Seconds from `raysim run` to the end of its first round and to its exit, in phases, against an older commit.

python benchmarks/startup.py [--against COMMIT] [--repeats N] [--json FILE]

Runs the default task for one round, alternately with this source and with that of COMMIT, which is extracted to a
temporary folder. Flower and pfl-research are measured if `make bench-peers` has created their environments.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from measuring import machine, missed, parser, publish, round_seconds, spread, spread_table
from peers import PEERS, QUIET, WORK, command

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / ".peers"
COMMIT = "25bd4dc"
RUN = [sys.executable, "-u", "-m", "raysim", "run", "rounds=1"]
PHASES = {  # the line that ends a phase, in the order of the output
    "imports": r"preparing the data",
    "data": r"starting Ray",
    "ray": r"Ray is up",
    "actors": r"\d+ sites on",
    "first_round": r"round +1/",
    "report": r"report: ",
}
START, WHOLE = "to the end of the first round", "to the exit"
MEANINGS = {
    "imports": "configuration, imports",
    "data": "task and its data, network",
    "ray": "wait for Ray",
    "actors": "server actor and client actors",
    "first_round": "first round, with the first call and evaluation",
    "report": "summary and report",
    "exit": "stop of Ray",
    "start": START,
    "whole": WHOLE,
    "cpu": "CPU seconds of all processes to the end of the first round",
}
ROWS = (
    {f"here_{name}": f"{text}: s" for name, text in MEANINGS.items()}
    | {f"there_{name}": f"COMMIT, {text}: s" for name, text in MEANINGS.items()}
    | {"start_ratio": f"{START} / that of COMMIT", "whole_ratio": f"{WHOLE} / that of COMMIT"}
    | {"cpu_ratio": "CPU seconds / those of COMMIT", "end": "from the end of the first round to the exit: s"}
    | {"flower": "Flower, to the end of the first round: s", "pfl": "pfl-research, to the end of the first round: s"}
)
POLL_S = 0.1
LIMITS = {"start_ratio": 0.55, "end": 2.0}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes of Ray that lose their parent become children of this process


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds until the first round of raysim")
    options.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    options.add_argument("--against", default=COMMIT, metavar="COMMIT", help=f"the older commit (default: {COMMIT})")
    args = options.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    found = machine() | {"repeats": args.repeats, "against": args.against}
    found["figures"] = {name: spread(values) for name, values in measure(args.against, args.repeats).items()}
    rows = {name: text.replace("COMMIT", args.against) for name, text in ROWS.items()}
    table = spread_table(f"raysim run rounds=1; {args.repeats} repeats", rows, found["figures"], LIMITS)
    publish(found, table, args.json)
    return int(missed(found["figures"], LIMITS))


def measure(commit: str, repeats: int) -> dict[str, list[float]]:
    """The rows of the table, each with its values over the repeats."""
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        extract(commit, folder)
        for _ in range(repeats):
            there, here = run_phases(Path(folder)), run_phases(ROOT)
            values = {f"there_{name}": value for name, value in there.items()}
            values |= {f"here_{name}": value for name, value in here.items()}
            values |= {f"{name}_ratio": here[name] / there[name] for name in ("start", "whole", "cpu")}
            for name, value in (values | {"end": here["report"] + here["exit"]}).items():
                figures.setdefault(name, []).append(value)
    return figures | peer_starts(repeats)


def extract(commit: str, folder: str) -> None:
    """Write the source of `commit` to `folder`."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)


def run_phases(source: Path) -> dict[str, float]:
    """The seconds of each phase of a run of the source in this folder, their sums, and the CPU seconds."""
    ends, cpu = [0.0], {"cpu": 0.0}
    patterns = iter(PHASES.values())
    pattern = next(patterns)
    with tempfile.TemporaryDirectory() as folder, sampled_cpu_seconds() as total:
        environment = os.environ | {"PYTHONPATH": str(source)}
        start = time.perf_counter()
        with subprocess.Popen(RUN, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if re.match(pattern, line):
                    ends.append(time.perf_counter() - start)
                    if pattern == PHASES["first_round"]:
                        cpu["cpu"] = total()
                    pattern = next(patterns, "(?!)")
        ends.append(time.perf_counter() - start)
    if process.returncode or len(ends) != len(PHASES) + 2:
        sys.exit(f"{' '.join(RUN)} failed with exit code {process.returncode} in {source}")
    names = [*PHASES, "exit"]
    seconds = {name: end - begin for name, begin, end in zip(names, ends, ends[1:], strict=False)}
    return seconds | cpu | {"start": ends[1 + names.index("first_round")], "whole": ends[-1]}


@contextmanager
def sampled_cpu_seconds() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the CPU seconds of all child processes since the start of the block.

    They are polled, because Ray's processes are not waited for. At the end the block waits for them.
    """
    seen: dict[tuple[int, int], float] = {}
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_S):
            seen.update(children_cpu())

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield lambda: sum(seen.values())
    finally:
        done.set()
        thread.join()
    with suppress(ChildProcessError):
        while True:
            os.wait()


def children_cpu() -> dict[tuple[int, int], float]:
    """The CPU seconds of each child process of this process, by process and its start, also of their children."""
    parents, cpu = dict[int, int](), dict[int, tuple[int, float]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            fields = path.read_text().rpartition(") ")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            cpu[pid] = int(fields[19]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    mine, level = set[int](), {os.getpid()}
    while level := {pid for pid, parent in parents.items() if parent in level}:
        mine |= level
    return {(pid, cpu[pid][0]): cpu[pid][1] for pid in mine}


def peer_starts(repeats: int) -> dict[str, list[float]]:
    """Seconds from the command of another engine to the end of its first round of overhead.py's federation."""
    names = [name for name in ("flower", "pfl") if (VENVS / PEERS[name].venv).exists()]
    if not names:
        return {}
    os.environ.update(QUIET)
    with tempfile.TemporaryDirectory() as data:
        subprocess.run([sys.executable, WORK / "work.py", data], check=True)
        return {name: [round_seconds(command(PEERS[name], VENVS, data))[0] for _ in range(repeats)] for name in names}


if __name__ == "__main__":
    sys.exit(main())
