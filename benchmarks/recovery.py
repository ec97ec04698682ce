"""Cost of a killed client actor: lost seconds, also over a round. Digests must equal that of an undisturbed run.

python benchmarks/recovery.py [--repeats N] [--cases N] [--json FILE]

The federation of overhead.py with more images at each site, so that a round takes seconds. In round 8 raysim kills one
of its two client actors (chaos). Lost in the round: its seconds minus the median of the steady rounds before. Lost in
all: the same, summed over that round and all later rounds except the last, evaluated one; in these rounds the actor
starts again and opens its data. Each run is compared with its own rounds; the undisturbed run is for the digest.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import WARM, machine, missed, parser, publish, round_seconds, spread, spread_table
from overhead import ACTORS, ENGINE

from raysim.core.results import FailureAction

ROUNDS, KILLED = 16, 8
CASES = 192
ROWS = {
    "undisturbed": "a steady round of the undisturbed run: s",
    "round": "a steady round before the kill: s",
    "lost": "lost in the round of the kill: s",
    "lost_over_round": "lost in the round of the kill / a steady round",
    "lost_in_all": "lost in that round and the later ones: s",
    "lost_in_all_over_round": "lost in that round and the later ones / a steady round",
}
LIMITS: dict[str, float] = {}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed or the digests differ."""
    options = parser("seconds that a killed client actor costs a run")
    options.add_argument(
        "--repeats", type=int, default=3, help="runs with a kill; an undisturbed run comes first (default: 3)"
    )
    options.add_argument("--cases", type=int, default=CASES, help=f"images at a site (default: {CASES})")
    args = options.parse_args()
    found = machine() | {"repeats": args.repeats, "cases": args.cases}
    runs = measure(args.cases, args.repeats)
    digests = [run["digest"] for run in runs]
    figures = {name: spread(values) for name, values in over_repeats(runs).items()}
    found |= {"figures": figures, "runs": runs}
    title = f"64 sites of {args.cases} images, {ACTORS} client actors, one killed; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, figures, LIMITS), args.json)
    same = len(set(digests)) == 1
    print(f"digests of the undisturbed run and of runs with a kill: {'equal' if same else f'DIFFERENT: {digests}'}")
    return int(not same or missed(figures, LIMITS))


def measure(cases: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each round, and the digest, of an undisturbed run and then of each run with a kill."""
    arguments = [*ENGINE, f"task.data.cases={cases}"]
    arguments += [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
    with_kill = [*arguments, f"chaos=kill client@{KILLED}"]
    return [outcome(arguments, kills=0), *(outcome(with_kill, kills=1) for _ in range(repeats))]


def over_repeats(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The rows of the table, each with its values over the repeats."""
    undisturbed, *with_kill = (run["seconds"] for run in runs)
    each = [losses(seconds) for seconds in with_kill]
    lost = {name: [found[name] for found in each] for name in each[0]}
    return {"undisturbed": [statistics.median(undisturbed[WARM:-1])]} | lost


def outcome(arguments: Sequence[str], kills: int) -> dict[str, Any]:
    """Seconds of each round, and the digest, of a run in which `kills` actors were lost and replaced."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds = round_seconds([*arguments, "--out", str(out)])
        file = out / "failures.jsonl"
        failures = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        summary = json.loads((out / "summary.json").read_text())
    if not as_asked(failures, kills):
        sys.exit(f"{kills} kills were requested in round {KILLED}; failures.jsonl has {failures}")
    return {"digest": summary["digest"], "seconds": seconds}


def as_asked(failures: Sequence[dict[str, Any]], kills: int) -> bool:
    """Whether exactly `kills` actors were lost, in round KILLED, and their sites ran again."""
    return [(each["round"], each["action"]) for each in failures] == [(KILLED, FailureAction.RETRIED)] * kills


def losses(seconds: Sequence[float]) -> dict[str, float]:
    """The cost of the kill in a run with these seconds per round, compared with the steady rounds before it."""
    at = KILLED - 1
    round = statistics.median(seconds[WARM:at])
    lost, in_all = seconds[at] - round, sum(each - round for each in seconds[at:-1])
    return {
        "round": round,
        "lost": lost,
        "lost_over_round": lost / round,
        "lost_in_all": in_all,
        "lost_in_all_over_round": in_all / round,
    }


if __name__ == "__main__":
    sys.exit(main())
