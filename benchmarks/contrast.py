"""Cost of contrastive training with a large bank over the encoder's passes, and cost of exchanging banks.

python benchmarks/contrast.py [--repeats N] [--json FILE]

The encoder is that of examples/hippocampus_fcl.yaml, with batch 32 and a full bank of 4,096 features of 128 numbers.

- step: a step of FCL at a site, with its batch, two views, both networks, the loss, the optimiser, the momentum
  encoder and the bank. passes: a forward pass with gradient, one without, and a backward pass, on the same images.
- exchange: `fleet.exchange` of ten such banks, 21 MB, by two real client actors and the real server actor. empty: the
  same with empty banks, which is the cost of ten calls. put: `ray.put` of the same banks, one after the other, in the
  server's process: the one copy that all processes of a node can read. copy: numpy's copy of the same bytes.
- fetch: a call in which every site opens the nine banks of the other sites, minus a call with empty banks.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from aggregate import run
from measuring import machine, missed, parser, publish, spread, spread_table

from algorithms.fcl import FCL, ClientState, Features
from raysim import Fleet, LocalFleet, Metrics, Model, Reply, Site, Task, weights
from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve
from raysim.federation.site_executor import CallKey

ROOT = Path(__file__).parents[1]
BATCH, BANK, DIMENSIONS, SITES, STEPS, WARM = 32, 4096, 128, 10, 30, 3
ROWS = {
    "step": "a step of FCL: ms",
    "passes": "two forward passes and a backward pass: ms",
    "ratio": "a step / the passes",
    "exchange": "exchange of ten banks: ms",
    "empty": "exchange of ten empty banks: ms",
    "put": "ray.put of ten banks: ms",
    "over": "(exchange - empty) / ray.put",
    "copy": "numpy's copy of the bytes of ten banks: ms",
    "over_copy": "(exchange - empty) / numpy's copy",
    "fetch": "all sites open the banks of all others, minus empty banks: ms",
}
LIMITS = {"ratio": 1.5, "over": 1.3}


def full(size: int = BANK) -> Features:
    vectors = np.random.default_rng(0).standard_normal((size, DIMENSIONS), np.float32)
    levels = np.arange(size, dtype=np.int32) % 4 + 1
    return Features(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), levels)


def steps(repeats: int) -> list[dict[str, float]]:
    """Milliseconds of a step and of the passes alone, measured alternately."""
    keys = merge(read_file(str(ROOT / "examples" / "hippocampus_fcl.yaml")), parse_pairs(["task=synthetic"]))
    network, data = keys["task"]["network"], {"sites": 1, "cases": 256, "val": 0, "test": 1, "size": [48, 48]}
    task = resolve({"task": {"name": "synthetic", "network": network, "data": data | {"outside": []}}}).task.build()
    mine = FCL(bank=BANK, sampled=BANK, features=DIMENSIONS, batch_size=BATCH, steps=WARM + STEPS, pretrain_rounds=1)
    site = LocalFleet(task, rounds=2).executor._site("site-01", CallKey(0, 0, 2, 0), None)
    kept = ClientState(weights(mine.build(site.load(), task)), full())
    net, target = mine.build(site.load(), task), mine.build(site.load(), task).requires_grad_(False)
    found = []
    for _ in range(repeats):
        found.append({"passes": passes(net, target)})
        found[-1]["step"] = of_fcl(mine, site, kept)
    return [each | {"ratio": each["step"] / each["passes"]} for each in found]


def of_fcl(mine: FCL, site: Site[Any], kept: ClientState) -> float:
    """Milliseconds of one step, without the first steps of a call."""
    from algorithms.fcl import Bank

    site, pool = mine.stage(site)
    net, target = mine.build(site.load(), site.task), mine.build(site.load(), site.task)
    bank, times = Bank(BANK, DIMENSIONS, [], kept.bank, site.device), list[float]()

    def timed() -> Any:
        for loss in mine.losses(net, target, site, pool, bank):
            times.append(time.perf_counter())
            yield loss

    mine.optimize(net, site, timed())
    return 1e3 * (times[-1] - times[WARM - 1]) / STEPS


def passes(net: torch.nn.Module, target: torch.nn.Module) -> float:
    images = torch.randn(BATCH, 1, 48, 48)
    for step in range(WARM + STEPS):
        if step == WARM:
            start = time.perf_counter()
        with torch.no_grad():
            target(images)
        net(images).sum().backward()
    return 1e3 * (time.perf_counter() - start) / STEPS


@dataclass(frozen=True, kw_only=True)
class Exchanging:
    """An algorithm whose round only exchanges banks."""

    def init(self, task: Task) -> Model:
        return weights(task.start(0))

    def keep(self, site: Site[Any], size: int) -> Reply[None]:
        return Reply(None, client_state=ClientState(Model.of({}), full(size)))

    def open(self, site: Site[Any], banks: Any) -> Reply[None]:
        rows = sum(len(banks[other].levels) for other in banks.sites if other != site.name)
        return Reply(None, metrics={"rows": rows})

    def round(self, fleet: Fleet, state: Model) -> tuple[Model, Metrics]:
        method, found, fetched = FCL(), dict[str, float](), list[float]()
        for name, size in (("empty", 0), ("exchange", BANK)):
            fleet.map(self.keep, size)
            start = time.perf_counter()
            banks = fleet.exchange(method.publish)
            found[name] = milliseconds(start)
            start = time.perf_counter()
            fleet.map(self.open, banks)
            fetched.append(milliseconds(start))
        found["fetch"] = fetched[1] - fetched[0]
        several = [full() for _ in range(SITES)]
        start = time.perf_counter()
        references = [ray.put(bank) for bank in several]
        found["put"] = milliseconds(start)
        del references
        bytes_of_all = np.zeros(sum(bank.vectors.nbytes + bank.levels.nbytes for bank in several), np.uint8)
        into = np.ones_like(bytes_of_all)
        start = time.perf_counter()
        np.copyto(into, bytes_of_all)
        found["copy"] = milliseconds(start)
        extra = found["exchange"] - found["empty"]
        return state, found | {"over": extra / found["put"], "over_copy": extra / found["copy"]}

    def predictor(self, site: Site[Any], state: Model) -> None:
        """None: this benchmark makes no predictions."""


def milliseconds(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("cost of contrastive training over the encoder's passes, and of exchanging banks over a copy")
    options.add_argument("--repeats", type=int, default=10, help="measured repeats (default: 10)")
    args = options.parse_args()
    found = machine() | {"batch": BATCH, "bank": BANK, "repeats": args.repeats}
    torch.set_num_threads(1)
    measured = [steps(args.repeats), run(Exchanging(), SITES, 2 + args.repeats, 2 * 10**9)[2:]]
    figures = {
        name: spread([each[name] for each in of if name in each]) for of in measured for name in ROWS if name in of[0]
    }
    found["figures"] = {name: figures[name] for name in ROWS}
    title = f"batch {BATCH}, a bank of {BANK:,} features of {DIMENSIONS} numbers; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


if __name__ == "__main__":
    sys.exit(main())
