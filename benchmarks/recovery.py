"""What a killed client actor costs: seconds lost, and over a round; the bits must be those of a calm run.

python benchmarks/recovery.py [--repeats N] [--cases N] [--json FILE]

The federation of overhead.py with more images at each site, so that a round takes seconds; in round 8 raysim really
kills (chaos) one of its two client actors. Lost in the round: its seconds less the median of the steady rounds before.
Lost in all: the same summed over that round and all later ones but the last, which is judged, for meanwhile the actor
is started anew and opens its data. Each run is judged by its own rounds; the calm one is there for the bits.
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
    "calm": "a steady round of the calm run: s",
    "round": "a steady round before the kill: s",
    "lost": "lost in the round of the kill: s",
    "lost_over_round": "lost in the round of the kill / a steady round",
    "lost_in_all": "lost in that round and the later ones: s",
    "lost_in_all_over_round": "lost in that round and the later ones / a steady round",
}
LIMITS: dict[str, float] = {}


def main() -> int:
    """Measure, print, and write JSON where asked; 1 if a limit is missed or the digests differ."""
    options = parser("seconds that a killed client actor costs a run")
    options.add_argument("--repeats", type=int, default=3, help="runs with a kill, after a calm one (default: 3)")
    options.add_argument("--cases", type=int, default=CASES, help=f"images at a site (default: {CASES})")
    args = options.parse_args()
    found = machine() | {"repeats": args.repeats, "cases": args.cases}
    runs = measure(args.cases, args.repeats)
    digests = [run["digest"] for run in runs]
    figures = {name: spread(values) for name, values in judged(runs).items()}
    found |= {"figures": figures, "runs": runs}
    title = f"64 sites of {args.cases} images, {ACTORS} client actors, one killed; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, figures, LIMITS), args.json)
    same = len(set(digests)) == 1
    print(f"digests of the calm run and of those with a kill: {'equal' if same else f'DIFFERENT: {digests}'}")
    return int(not same or missed(figures, LIMITS))


def measure(cases: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each round, and the digest, of a calm run and then of each with a kill."""
    words = [*ENGINE, f"task.data.cases={cases}"]
    words += [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
    troubled = [*words, f"chaos=kill client@{KILLED}"]
    return [outcome(words, kills=0), *(outcome(troubled, kills=1) for _ in range(repeats))]


def judged(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The rows of the table, each with its values over the repeats."""
    calm, *troubled = (run["seconds"] for run in runs)
    each = [losses(seconds) for seconds in troubled]
    return {"calm": [statistics.median(calm[WARM:-1])]} | {name: [found[name] for found in each] for name in each[0]}


def outcome(words: Sequence[str], kills: int) -> dict[str, Any]:
    """Seconds of each round, and the digest, of a run in which so many actors were lost and replaced."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds = round_seconds([*words, "--out", str(out)])
        file = out / "failures.jsonl"
        failures = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        summary = json.loads((out / "summary.json").read_text())
    if not as_asked(failures, kills):
        sys.exit(f"{kills} kills were asked for in round {KILLED}; failures.jsonl has {failures}")
    return {"digest": summary["digest"], "seconds": seconds}


def as_asked(failures: Sequence[dict[str, Any]], kills: int) -> bool:
    """Whether as many actors were lost as were to be killed, in the round meant, and their sites run again."""
    return [(each["round"], each["action"]) for each in failures] == [(KILLED, FailureAction.RETRIED)] * kills


def losses(seconds: Sequence[float]) -> dict[str, float]:
    """What the kill cost a run of these seconds per round, by its steady rounds before it."""
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
