"""A large network: the round against the plain loop, the copies of the model, and the memory of the server.

python benchmarks/large.py [--repeats N] [--json FILE]

FedAvg of a U-Net of 103 million parameters (413 MB) over 16 sites on two client actors, 4 steps of 8 images of 32 x 32
per site. The run is alternated with the plain loops of overhead.py.

- store: maximum bytes in Ray's object store, in models. All objects of a round stay there until its end, so this is
  what a round copies into the store: the broadcast once, and a reply per site.
- memory: growth of an actor's private memory (RssAnon) since its start, imports included, in models. Objects in the
  store are shared memory and not counted.

The benchmark needs about 18 GB of free memory, 10 GB of it in /dev/shm.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from aggregate import ROOM, check_room
from measuring import machine, missed, parser, publish, round_seconds, spread, spread_table
from overhead import ACTORS, ROUND_ROWS, SCRIPT, over_halves
from sites import PAUSE, Look, watching

import raysim
from raysim.config.merge import parse_pairs
from raysim.core.events import Event, RoundEvent

SITES, ROUNDS, WARM = 16, 4, 1
FEDERATION = [
    *(f"task.data.sites={SITES}", "task.data.outside=[]", "task.data.cases=32", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[32, 32]", "task.network.channels=[200, 400, 800, 1600, 3200]", "task.network.num_res_units=0"),
    *("task.batch_size=8", "algorithm=fedavg", f"resources.client_actors={ACTORS}", "pictures=false"),
    *(f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"),
]
MODEL_BYTES = 413e6
ROWS = ROUND_ROWS | {
    "store": "maximum bytes in the object store: models",
    "server": "maximum additional memory of the server actor: models",
    "client": "maximum additional memory of the largest client actor: models",
}
LIMITS = {"ratio": 1.05, "store": SITES + 1.05, "server": 3.0}


def growth(looks: Sequence[Look], role: str) -> float:
    """The largest growth of an actor of this role, in models."""
    sizes: dict[int, list[int]] = {}
    for look in looks:
        if look.role == role:
            sizes.setdefault(look.pid, []).append(look.size)
    return max(max(each) - min(each) for each in sizes.values()) / MODEL_BYTES


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("a round of a network with 100 million parameters")
    options.add_argument("--repeats", type=int, default=1, help="runs, each between two loops (default: 1)")
    args = options.parse_args()
    store = int(ROOM * MODEL_BYTES * (SITES + 2))
    check_room(store)
    found = machine() | {"repeats": args.repeats}
    found["figures"] = {name: spread(values) for name, values in measure(args.repeats, store).items()}
    title = f"{SITES} sites, U-Net of {MODEL_BYTES / 4e6:.0f} million parameters; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


def measure(repeats: int, store: int) -> dict[str, list[float]]:
    """The rows of the table, each with its values over the repeats."""
    loops, fused, engines = [loop_seconds([])], [loop_seconds(["--fused"])], list[dict[str, float]]()
    for _ in range(repeats):
        engines.append(run(store))
        fused.append(loop_seconds(["--fused"]))
        loops.append(loop_seconds([]))
    seconds = [each["engine"] for each in engines]
    figures = {"loop": loops, "fused": fused, "ratio": over_halves(seconds, loops)}
    figures["fused_ratio"] = over_halves(seconds, fused)
    return figures | {name: [each[name] for each in engines] for name in engines[0]}


def loop_seconds(options: Sequence[str]) -> float:
    """Median seconds of a round of the plain loop."""
    return statistics.median(round_seconds([*SCRIPT, *options, *FEDERATION])[WARM:])


def run(store: int) -> dict[str, float]:
    """The figures of one run, on a Ray whose store fits the replies of a round."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_LD_PRELOAD_ON_WORKERS": "1"}  # as `raysim run`
    import ray  # reads these variables at import

    ray.init(address="local", object_store_memory=store, logging_level=logging.ERROR, include_dashboard=False)
    try:
        with tempfile.TemporaryDirectory() as folder, watching() as looks, store_bytes() as used:
            ends: list[float] = []

            def record(event: Event) -> None:
                if isinstance(event, RoundEvent):
                    ends.append(time.perf_counter())

            raysim.run(parse_pairs(FEDERATION), out=Path(folder) / "run", on_event=record)
    finally:
        ray.shutdown()
    steady = [end - start for start, end in pairwise(ends)][WARM - 1 : -1]
    return {
        "engine": statistics.median(steady),
        "store": max(used) / MODEL_BYTES,
        "server": growth(looks, "server"),
        "client": growth(looks, "client"),
    }


@contextmanager
def store_bytes() -> Iterator[list[float]]:
    """The bytes of the objects in the object store, measured repeatedly during the block."""
    import ray

    used: list[float] = []
    done = threading.Event()

    def poll() -> None:
        name = "object_store_memory"
        while not done.wait(PAUSE):
            used.append(ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield used
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
