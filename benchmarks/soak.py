"""A long run with a killed client actor every minute: memory of the server, and the digest without kills.

python benchmarks/soak.py [--minutes N] [--json FILE]

The federation of overhead.py. A short run measures the seconds of a round, so that the long run takes about N minutes.
Then a run of as many rounds without kills computes the expected digest. So the benchmark takes about twice N minutes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring
from measuring import machine, parser, publish, spread, spread_table, steady
from overhead import ENGINE
from sites import MB, typical, watched

from raysim.core.results import FailureAction

MINUTE, MINUTES = 60.0, 60
EVERY = 25  # rounds from one evaluation and checkpoint to the next
PARTS = 5  # the memory in the last fifth of the rounds is compared with that in the second fifth
SHARE = 0.5  # of the deadline of a command
ROWS = {
    "round": "a round without kills, in the short run: s",
    "lasted": "a round with kills, median: s",
    "early": "memory of the server actor, second fifth of the rounds: MB",
    "late": "memory of the server actor, last fifth: MB",
    "growth": "memory of the server actor, last fifth / second fifth",
}
LIMITS = {"growth": 1.03}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed, kills are missing or the digests differ."""
    options = parser("a long run with a killed client actor every minute")
    options.add_argument("--minutes", type=float, default=MINUTES, help=f"of the run with kills (default: {MINUTES})")
    args = options.parse_args()
    measuring.DEADLINE = max(measuring.DEADLINE, args.minutes * MINUTE / SHARE)
    found = machine() | {"minutes": args.minutes}
    second = steady(ENGINE)
    rounds = max(PARTS * EVERY, round(args.minutes * MINUTE / second))
    kills = kill_rounds(rounds, max(1, round(MINUTE / second)))
    disturbed = outcome([*length(rounds), f"chaos={'; '.join(f'kill client@{number}' for number in kills)}"])
    undisturbed = outcome(length(rounds))
    figures = {"round": second, "lasted": disturbed["lasted"], **disturbed["memory"]}
    found |= {
        "rounds": rounds,
        "kills": len(kills),
        "figures": {name: spread([each]) for name, each in figures.items()},
    }
    title = f"{rounds} rounds of 64 sites, {len(kills)} kills"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    same, killed = disturbed["digest"] == undisturbed["digest"], disturbed["actions"][FailureAction.RETRIED]
    print(
        f"digests with and without kills: {'equal' if same else 'DIFFERENT'}; {killed} of {len(kills)} kills recorded"
    )
    return int(not same or killed != len(kills) or measuring.missed(found["figures"], LIMITS))


def length(rounds: int) -> list[str]:
    return [*ENGINE, f"rounds={rounds}", f"evaluate_every={EVERY}", f"checkpoint_every={EVERY}"]


def kill_rounds(rounds: int, every: int) -> list[int]:
    """The rounds of the kills: every `every` rounds, none in the first or the last round."""
    return [*range(1 + every, rounds, every)] or [1 + rounds // 2]


def outcome(arguments: Sequence[str]) -> dict[str, Any]:
    """Digest, memory of the server, median seconds of a round and number of failures by action of a run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        ends, looks = watched([*arguments, "--out", str(out)])
        file = out / "failures.jsonl"
        failures = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        summary = json.loads((out / "summary.json").read_text())
    part = len(ends) // PARTS
    early, late = (typical(looks, "server", ends[at], ends[at + part - 1]) / MB for at in (part, len(ends) - part))
    return {
        "digest": summary["digest"],
        "memory": {"early": early, "late": late, "growth": late / early},
        "lasted": statistics.median(end - start for start, end in pairwise(ends)),
        "actions": Counter(failure["action"] for failure in failures),
    }


if __name__ == "__main__":
    sys.exit(main())
