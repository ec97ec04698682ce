"""Cost of a search: trials of raysim tune over the same federations in a plain loop, and as separate runs.

python benchmarks/search.py [--trials N] [--separate N] [--queue N] [--json FILE]

--separate runs N of them as separate commands, because each `raysim run` starts Ray, and N simulations of Flower, if
`make bench-peers` has installed it. --queue runs N trials of one round and measures the memory of the command.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from measuring import machine, missed, parser, publish, round_lines, spread, spread_table
from peers import PEERS, QUIET, ROOT, WORK as PEER_WORK, command, installed

from raysim.search.trial_store import load_records

CORES, ROUNDS = 2, 6
VENVS = ROOT / ".peers"
WORK = [
    *("task.data.sites=64", "task.data.outside=[]", "task.data.cases=16", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[32, 32]", "task.network.channels=[7, 14, 28]", "task.network.num_res_units=0"),
    *("task.batch_size=8", "algorithm=fedavg", "algorithm.epochs=1"),
    *(f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"),
]
TINY = [
    *("task.data.sites=2", "task.data.outside=[]", "task.data.cases=2", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[16, 16]", "task.network.channels=[4, 8]", "task.network.num_res_units=0"),
    *("rounds=1", "backend=local"),
]
SPACE = ["--space", "algorithm.lr=loguniform(1e-4,1e-2)"]
TUNE, RUN = ([sys.executable, "-m", "raysim", command] for command in ("tune", "run"))
LOOP = [sys.executable, str(Path(__file__).with_name("plain_loop.py")), *WORK]
ROWS = {
    "loop": f"plain loop, {ROUNDS} rounds: s",
    "search": f"raysim tune, all trials, {CORES} at once: s from the first trial to the last",
    "ratio": f"the search / (the plain loops' sum / {CORES})",
    "whole": "the same from the command to its end, Ray's start and the report included: s",
    "separate": "one `raysim run` of the same on client actors: s",
    "separate_ratio": "as many `raysim run` one by one / the whole command",
    "flower": "one Flower simulation of the same, without evaluation: s",
    "flower_ratio": "as many Flower simulations one by one / the whole command",
    "startup": "from a trial's end to the end of the next trial's first round, minus a round: s",
    "memory": "memory of the command after all queued trials / after the first quarter",
    "files": "files of a queued trial",
}
LIMITS = {"ratio": 1.35, "startup": 1.0, "memory": 1.1}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds of a search against plain loops and separate runs")
    options.add_argument("--trials", type=int, default=16, help="trials of the search (default: 16)")
    options.add_argument("--separate", type=int, default=2, help="separate `raysim run` commands (default: 2)")
    options.add_argument("--queue", type=int, default=200, help="queued tiny trials (default: 200; 0: none)")
    args = options.parse_args()
    found = machine() | {"trials": args.trials}
    if (VENVS / "flower").exists():
        found["versions"]["flwr"] = installed(PEERS["flower"], VENVS)
    figures = against_loops(args.trials, args.separate)
    if args.queue:
        figures |= queued(args.queue)
    found["figures"] = {name: spread(values) for name, values in figures.items()}
    title = f"{args.trials} trials of 64 sites of 16 images, 32x32, {ROUNDS} rounds"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


def against_loops(trials: int, separate: int) -> dict[str, list[float]]:
    """The search between two loops, then single runs."""
    loops = [loop_seconds()]
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "out", time.perf_counter()
        arguments = [*TUNE, *SPACE, *WORK, "--trials", str(trials), "--max-concurrent", str(CORES), "--out", str(out)]
        ends = line_times(arguments, rf"^trial +\d+/{trials}  done")
        whole = time.perf_counter() - start
        assert len(ends) == trials
        starts = first_rounds(out)
        last = max(ends)
        search = last - min(starts)
    loops.append(loop_seconds())
    alone = [command_seconds([*RUN, *WORK]) for _ in range(separate)]
    loop = statistics.mean(loops)
    figures = {"loop": loops, "search": [search], "ratio": [search / (trials * loop / CORES)], "whole": [whole]}
    if alone:
        figures |= {"separate": alone, "separate_ratio": [trials * statistics.mean(alone) / whole]}
    if (VENVS / "flower").exists() and separate:
        flower = flower_seconds(separate)
        figures |= {"flower": flower, "flower_ratio": [trials * statistics.mean(flower) / whole]}
    return figures


def flower_seconds(times: int) -> list[float]:
    """Seconds of the command that simulates the same rounds with Flower."""
    os.environ.update(QUIET | {"WORK_ROUNDS": str(ROUNDS)})
    with tempfile.TemporaryDirectory() as data:
        subprocess.run([sys.executable, PEER_WORK / "work.py", data], check=True)
        return [command_seconds(command(PEERS["flower"], VENVS, data)) for _ in range(times)]


def loop_seconds() -> float:
    """Seconds of all rounds of a plain loop, without imports and data preparation."""
    times = [second for second, _ in round_lines(LOOP)]
    return (times[-1] - times[0]) * ROUNDS / (ROUNDS - 1)


def first_rounds(out: Path) -> list[float]:
    """The times at which the processes started their trials, by the clock of line_times."""
    began = (out / "search.yaml").stat().st_mtime
    wall = time.time() - time.perf_counter()
    folders = sorted(out.glob("trials/*/session"))
    assert folders
    assert all(folder.stat().st_mtime >= began for folder in folders)
    return [folder.stat().st_mtime - wall for folder in folders]


def line_times(arguments: Sequence[str], pattern: str, watch: dict[str, list[float]] | None = None) -> list[float]:
    """The times of the output lines of a command that match `pattern`. Appends RssAnon at these times to `watch`."""
    times: list[float] = []
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    alarm = threading.Timer(3600, process.kill)
    alarm.start()
    output = []
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        if re.match(pattern, line):
            times.append(time.perf_counter())
            if watch is not None:
                watch["memory"].append(anonymous(process.pid))
    alarm.cancel()
    if process.wait():
        raise SystemExit("".join(output))
    return times


def anonymous(pid: int) -> float:
    """Bytes of private memory (RssAnon) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def command_seconds(arguments: Sequence[str]) -> float:
    """Seconds of a command, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start


def queued(trials: int) -> dict[str, list[float]]:
    """Many tiny trials: the memory of the command, the files of a trial, and the seconds to start one."""
    watch: dict[str, list[float]] = {"memory": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = [*TUNE, *SPACE, *TINY, "--trials", str(trials), "--max-concurrent", "1", "--out", str(out)]
        ends = line_times(arguments, r"^trial .*done", watch)
        entries = load_records(out)
        rounds = pd.read_parquet(out / "rounds.parquet")
        files = sum(path.is_file() for path in (out / "trials").rglob("*")) / trials
        left = [path.name for path in out.iterdir() if path.is_dir()]
    assert len(entries) == len(rounds) == trials
    assert left == ["trials"]
    usual = statistics.median(rounds["seconds"])
    gaps = [b - a - usual for a, b in itertools.pairwise(ends)]
    memory = watch["memory"]
    return {"startup": [statistics.median(gaps)], "memory": [memory[-1] / memory[len(memory) // 4]], "files": [files]}


if __name__ == "__main__":
    sys.exit(main())
