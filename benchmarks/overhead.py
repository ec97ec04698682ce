"""Overhead of the engine: a round of raysim on Ray over the same local work in a plain loop, measured alternately.

python benchmarks/overhead.py [--repeats N] [--retina TABLE] [--json FILE]

--retina also measures a round of examples/retina.yaml; TABLE is the table.csv of its data.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path

from measuring import machine, missed, parser, publish, round_lines, round_seconds, spread, spread_table, steady

ACTORS = 2
ROUNDS = 13
QUIET = [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
FEDERATION = [
    *("task.data.sites=64", "task.data.outside=[]", "task.data.cases=16", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[32, 32]", "task.network.channels=[7, 14, 28]", "task.network.num_res_units=0"),
    *("task.batch_size=8", "algorithm=fedavg", "algorithm.epochs=1", f"resources.client_actors={ACTORS}"),
    *QUIET,
]
RUN = [sys.executable, "-m", "raysim", "run"]
ENGINE = [*RUN, *FEDERATION]
# As many cases are evaluated as are trained on; evaluated in every round, and only in the last.
WITH_CASES = [*ENGINE, "task.data.cases=32", "task.data.val=8", "task.data.test=8"]
EVALUATED = [*WITH_CASES, "evaluate_every=1"]
SCRIPT = [sys.executable, str(Path(__file__).with_name("plain_loop.py"))]
LOOP, FUSED = [*SCRIPT, *FEDERATION], [*SCRIPT, "--fused", *FEDERATION]
RETINA_ROUNDS = 6
RETINA = [
    *("-c", str(Path(__file__).resolve().parents[1] / "examples" / "retina.yaml"), f"resources.client_actors={ACTORS}"),
    *(f"rounds={RETINA_ROUNDS}", f"evaluate_every={RETINA_ROUNDS}", f"checkpoint_every={RETINA_ROUNDS}"),
]
RETINA_WARM = 2  # round 1 is scheduled by the sizes of sites, round 2 by seconds that include opening the data
ROUND_ROWS = {
    "loop": "plain loop, one process, one thread: s per round",
    "fused": "the same with the fused optimiser of raysim: s per round",
    "engine": f"raysim on Ray, {ACTORS} client actors of 1 CPU: s per round",
    "ratio": f"raysim / (plain loop / {ACTORS})",
    "fused_ratio": f"raysim / (fused plain loop / {ACTORS})",
}
ROWS = ROUND_ROWS | {
    "floor": f"{ACTORS} plain loops at once / plain loop: lower bound of that ratio on this machine",
    "evaluation_share": "evaluation of 16 cases per site / a round that trains on 16 cases and evaluates 16",
    "first_round": "from `raysim run` to the end of the first round, default task: s",
    "retina_loop": "retina, plain loop: s per round",
    "retina_engine": "retina, raysim on Ray: s per round",
    "retina_ratio": f"retina, raysim / (plain loop / {ACTORS})",
    "retina_floor": f"retina, schedule floor: the best of whole sites on {ACTORS} actors / (plain loop / {ACTORS})",
}
LIMITS = {"ratio": 1.15, "first_round": 25.0, "retina_ratio": 1.05}
TITLE = "64 sites of 16 images, 32x32; U-Net of 7,433 parameters"


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds of a raysim round against a plain PyTorch loop")
    options.add_argument("--repeats", type=int, default=3, help="engine runs, each between two loops (default: 3)")
    options.add_argument("--retina", metavar="TABLE", type=Path, help="the table.csv of examples/retina.yaml's data")
    args = options.parse_args()
    found = machine() | {"repeats": args.repeats}
    figures = measure(args.repeats)
    if args.retina:
        figures |= retina(args.retina.resolve(), args.repeats)
    else:
        print("retina: skipped, because --retina TABLE was not given")
    found["figures"] = {name: spread(values) for name, values in figures.items()}
    publish(found, spread_table(f"{TITLE}; {args.repeats} repeats", ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


def measure(repeats: int) -> dict[str, list[float]]:
    """The rows of the table, each with its values over the repeats."""
    loops, fused, engines, crowds, shares, firsts = [steady(LOOP)], [steady(FUSED)], [], [], [], []
    for _ in range(repeats):
        engines.append(steady(ENGINE))
        fused.append(steady(FUSED))
        loops.append(steady(LOOP))
        with ThreadPoolExecutor(ACTORS) as pool:
            crowds.append(statistics.mean(pool.map(steady, [LOOP] * ACTORS)))
        shares.append(1 - steady(WITH_CASES) / steady(EVALUATED))
        firsts.append(round_seconds([*RUN, "rounds=1"])[0])
    return {
        "loop": loops,
        "fused": fused,
        "engine": engines,
        "ratio": over_halves(engines, loops),
        "fused_ratio": over_halves(engines, fused),
        "floor": [crowd / loop for crowd, loop in zip(crowds, around(loops), strict=True)],
        "evaluation_share": shares,
        "first_round": firsts,
    }


def around(loops: Sequence[float]) -> list[float]:
    """The mean of the loops directly before and after each run, because the load of the machine changes over time."""
    return [statistics.mean(pair) for pair in pairwise(loops)]


def over_halves(engines: Sequence[float], loops: Sequence[float]) -> list[float]:
    return [engine / (loop / ACTORS) for engine, loop in zip(engines, around(loops), strict=True)]


def retina(table: Path, repeats: int) -> dict[str, list[float]]:
    """The same for five real clinics, and the lower bound of schedules of whole sites."""
    arguments = [*RETINA, f"task.data.table={table}"]
    passes, engines = [site_seconds([*SCRIPT, *arguments])], []
    for _ in range(repeats):
        engines.append(steady([*RUN, *arguments], RETINA_WARM))
        passes.append(site_seconds([*SCRIPT, *arguments]))
    loops = [sum(seconds) for seconds in passes]
    return {
        "retina_loop": loops,
        "retina_engine": engines,
        "retina_ratio": over_halves(engines, loops),
        "retina_floor": [makespan(seconds) / (sum(seconds) / ACTORS) for seconds in passes],
    }


def site_seconds(arguments: Sequence[str]) -> list[float]:
    """Median seconds of each site over the steady passes of a plain loop."""
    passes = [json.loads(line.split(" ", 2)[2]) for _, line in round_lines(arguments)][RETINA_WARM:-1]
    return [statistics.median(each[site] for each in passes) for site in passes[0]]


def makespan(seconds: Sequence[float]) -> float:
    """Seconds of the best schedule of whole sites on two actors, found by trying every split of the sites."""
    total = sum(seconds)
    parts = (sum(part) for size in range(len(seconds)) for part in combinations(seconds, size))
    return min(max(part, total - part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
