"""Cost of FedSM's selector: CPU time of a round of FedSM over that of a round that trains only its two models.

python benchmarks/selector.py [--repeats N] [--json FILE]

The second is a round of the first stage of FedSM-extra, which trains the same models without a selector. Both run in
one process, with one thread and one epoch, at two sites with 24 images of 48, 64 or 96 pixels per side and the U-Net of
the synthetic task. The selector has its default steps for a run of 30 rounds. Rounds of all methods are measured
alternately. With keep=best, FedSM also evaluates the two models and the selector on 4 validation images per site. It is
compared with a round that evaluates the two models as well, and with one that has no validation.
"""

from __future__ import annotations

import sys
import time

import torch
from measuring import machine, missed, parser, publish, spread, spread_table

from algorithms.fedsm import FedSM
from algorithms.fedsm_extra import FedSMExtra
from raysim import LocalFleet, Task, federate
from raysim.tasks.synthetic import Synthetic, SyntheticData

ROUNDS, MEASURED, WARM = 30, 5, 1
SIZES = (48, 64, 96)  # pixels per side
OF_SIZE = {
    "models": "a round that trains both models: ms",
    "ratio": "FedSM / both models, none with validation",
    "validated": "FedSM / both models, both with validation",
    "added": "FedSM with validation / both models without",
}
ROWS = {f"{name}_{size}": f"{size} pixels: {text}" for size in SIZES for name, text in OF_SIZE.items()}
LIMITS = {f"{name}_{size}": 1.3 for size in SIZES for name in ("ratio", "validated")}
METHODS = {
    "models": FedSMExtra(keep="last"),
    "models_validated": FedSMExtra(keep="best"),
    "fedsm": FedSM(keep="last"),
    "fedsm_validated": FedSM(keep="best"),
}


def milliseconds(task: Task) -> dict[str, float]:
    """CPU time of a round of each method: the lowest without the first rounds, because other load only adds time."""
    runs = {
        name: federate(method, task, LocalFleet(task, rounds=ROUNDS), rounds=ROUNDS, evaluate_every=ROUNDS)
        for name, method in METHODS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM + MEASURED):
        for name, rounds in runs.items():
            start = time.process_time()
            next(rounds)
            times[name].append(time.process_time() - start)
    for rounds in runs.values():
        rounds.close()
    return {name: 1e3 * min(values[WARM:]) for name, values in times.items()}


def measure(size: int) -> dict[str, float]:
    data = SyntheticData(sites=2, outside=(), cases=24, val=4, test=1, size=(size, size))
    found = milliseconds(Synthetic(data=data).build())
    figures = {
        "models": found["models"],
        "ratio": found["fedsm"] / found["models"],
        "validated": found["fedsm_validated"] / found["models_validated"],
        "added": found["fedsm_validated"] / found["models"],
    }
    return {f"{name}_{size}": value for name, value in figures.items()}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("cost of FedSM's selector over the training of both models")
    options.add_argument("--repeats", type=int, default=5, help="measured repeats (default: 5)")
    args = options.parse_args()
    torch.set_num_threads(1)
    found = machine() | {"repeats": args.repeats}
    measured = [{k: v for size in SIZES for k, v in measure(size).items()} for _ in range(args.repeats)]
    found["figures"] = {name: spread([each[name] for each in measured]) for name in ROWS}
    publish(found, spread_table("FedSM's selector", ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


if __name__ == "__main__":
    sys.exit(main())
