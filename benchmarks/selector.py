"""Cost of FedSM's selector: CPU time of a round of FedSM over that of a round that trains only its two models.

python benchmarks/selector.py [--repeats N] [--json FILE]

The second is a round of the first stage of FedSM-extra, which trains the same models without a selector. Both run in
one process, with one thread and one epoch, at two sites with 24 images of 128 x 128 and a U-Net of 0.1 M parameters.
The selector has its default steps for a run of 30 rounds. validated: with keep=best, both models and the selector are
also evaluated on 4 validation images per site.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from measuring import machine, missed, parser, publish, spread, spread_table

from algorithms.fedsm import FedSM
from algorithms.fedsm_extra import FedSMExtra
from raysim import LocalFleet, Task, federate
from raysim.tasks.synthetic import Synthetic, SyntheticData

ROUNDS, MEASURED, WARM = 30, 3, 1
ROWS = {
    "models": "a round that trains both models: ms",
    "fedsm": "a round of FedSM: ms",
    "ratio": "a round of FedSM / both models",
    "validated": "a round of FedSM with validation / both models",
}
LIMITS = {"ratio": 1.3}


def milliseconds(algorithm: Any, task: Task) -> float:
    """CPU time of a round, the median without the first rounds."""
    rounds = federate(algorithm, task, LocalFleet(task, rounds=ROUNDS), rounds=ROUNDS, evaluate_every=ROUNDS)
    times = [time.process_time()]
    for _ in range(WARM + MEASURED):
        next(rounds)
        times.append(time.process_time())
    rounds.close()
    return 1e3 * statistics.median(b - a for a, b in zip(times[WARM:], times[WARM + 1 :], strict=False))


def measure(task: Task) -> dict[str, float]:
    models = milliseconds(FedSMExtra(keep="last"), task)
    fedsm, validated = (milliseconds(FedSM(keep=keep), task) for keep in ("last", "best"))
    return {"models": models, "fedsm": fedsm, "ratio": fedsm / models, "validated": validated / models}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("cost of FedSM's selector over the training of both models")
    options.add_argument("--repeats", type=int, default=5, help="measured repeats (default: 5)")
    args = options.parse_args()
    torch.set_num_threads(1)
    data = SyntheticData(sites=2, outside=(), cases=24, val=4, test=1, size=(128, 128))
    network = {"name": "unet", "channels": [16, 32, 64, 128], "strides": [2, 2, 2]}
    task = Synthetic(data=data, network=network).build()
    found = machine() | {"repeats": args.repeats}
    measured = [measure(task) for _ in range(args.repeats)]
    found["figures"] = {name: spread([each[name] for each in measured]) for name in ROWS}
    publish(found, spread_table("FedSM's selector", ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


if __name__ == "__main__":
    sys.exit(main())
