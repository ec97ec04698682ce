"""Cost of the server's weighted mean: its seconds over reading the same bytes once, and its memory.

python benchmarks/aggregate.py [--replies N] [--parameters N] [--repeats N] [--json FILE]

200 replies of 10 million float32 parameters, 8 GB in Ray's object store, from two real client actors and the real
fleet. The mean is `raysim.mean`, in the round of an algorithm in the real server actor.

- read: numpy's fastest pass over all bytes in the store in one thread: an integer sum.
- memory: the maximum growth of the server's private memory (RssAnon) during the mean.
- error: the largest relative difference of every 101st entry from the mean computed in long double.

The first round is not counted, because it touches the memory of the store for the first time. The benchmark ends if
replies did not fit and were spilled to disk, because then it would measure the disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, missed, parser, publish, spread, spread_table

from raysim import Fleet, Metrics, Model, Reply, Site, Task, mean, weights
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.config.schema import Resources
from raysim.core.events import RoundEvent
from raysim.core.seeding import numpy_generator
from raysim.federation.plan import Plan, build_plan

REPLIES, PARAMETERS = 200, 10_000_000
ACTORS = 2
STRIDE = 101  # a prime, so that every position in a block is checked
ROOM = 1.35  # size of the store over the bytes of the replies: Ray spills when the store is filled to 0.8
SPARE = 4e9  # bytes for the processes
PAUSE = 0.02  # seconds between two measurements of the memory
MB = 1e6
ROWS = {
    "mean": "the weighted mean: s",
    "read": "reading the same bytes once: s",
    "ratio": "the mean / reading once",
    "speed": "the mean: GB of replies per second",
    "memory": "maximum additional memory of the server: MB",
    "models": "the same, in models",
    "error": "largest relative error, in steps of float32",
    "map": "making the replies, from the call to the last reply: s",
}
LIMITS = {"ratio": 2.5, "memory": 1000.0, "error": 1.0}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """An algorithm whose round only computes and measures a mean of replies."""

    parameters: int

    def init(self, task: Task) -> Model:
        return weights(task.start(0))

    def client(self, site: Site[Any], round: int) -> Reply[Model]:
        """A model of random entries, which differ for each site and round."""
        entries = numpy_generator(round, site.name).random(self.parameters, np.float32)
        return Reply(Model.of({"weight": entries}), weight=1.0 + site.task.inside.index(site.name) % 7)

    def round(self, fleet: Fleet, state: Model) -> tuple[Model, Metrics]:
        number, start = fleet.accounting.round, time.perf_counter()
        replies = fleet.map(self.client, number)
        found = {"map": time.perf_counter() - start}
        if number % 2:  # alternately before and after the mean
            found["read"] = read(replies)
        with growth(found):
            start = time.perf_counter()
            model = mean(replies)
            found["mean"] = time.perf_counter() - start
        if not number % 2:
            found["read"] = read(replies)
        return state, found | {"error": error(model["weight"], replies)}

    def predictor(self, site: Site[Any], state: Model) -> None:
        """None: this benchmark makes no predictions."""


def read(replies: Mapping[str, Any]) -> float:
    """Seconds to read every reply's bytes once."""
    start = time.perf_counter()
    for site in replies:
        array = replies[site].payload["weight"]
        array[: len(array) // 2 * 2].view(np.int64).sum()
    return time.perf_counter() - start


@contextmanager
def growth(found: dict[str, float]) -> Iterator[None]:
    """Sets `found["memory"]` to the maximum growth, in bytes, of this process's private memory during the block."""
    before, done = own_memory(), threading.Event()
    most = [before]

    def look_on() -> None:
        while not done.wait(PAUSE):
            most[0] = max(most[0], own_memory())

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    found["memory"] = max(most[0], own_memory()) - before


def own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def error(found: np.ndarray, replies: Mapping[str, Any]) -> float:
    """The largest relative error of every 101st entry, in steps of float32."""
    total, weights = np.zeros(len(found[::STRIDE]), np.longdouble), np.longdouble(0)
    for site in replies:
        reply = replies[site]
        total += reply.payload["weight"][::STRIDE] * np.longdouble(reply.weight)
        weights += reply.weight
    expected = total / weights
    return float((np.abs(found[::STRIDE] - expected) / expected).max() / np.finfo(np.float32).eps)


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds and memory of the server's weighted mean of large replies")
    options.add_argument("--replies", type=int, default=REPLIES, help=f"sites (default: {REPLIES})")
    options.add_argument(
        "--parameters", type=int, default=PARAMETERS, help=f"parameters of a reply (default: {PARAMETERS})"
    )
    options.add_argument("--repeats", type=int, default=4, help="measured rounds, after a first one (default: 4)")
    args = options.parse_args()
    store = int(ROOM * 4 * args.replies * args.parameters)
    check_room(store)
    found = machine() | {"replies": args.replies, "parameters": args.parameters, "repeats": args.repeats}
    found["figures"] = measure(args.replies, args.parameters, args.repeats, store)
    title = f"{args.replies} replies of {args.parameters:,} float32 parameters; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


def check_room(store: int) -> None:
    """Ends the benchmark if the machine has too little memory for an object store of `store` bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    shared = shutil.disk_usage("/dev/shm").free
    if free < store + SPARE or shared < store:
        sys.exit(
            f"nothing was measured: the replies need an object store of {store / 1e9:.1f} GB in shared memory, and "
            f"{SPARE / 1e9:.0f} GB more; {shared / 1e9:.1f} GB of /dev/shm and {free / 1e9:.1f} GB of memory are free. "
            "Use fewer replies (--replies) or smaller ones (--parameters)"
        )


def measure(replies: int, parameters: int, repeats: int, store: int) -> dict[str, dict[str, float]]:
    """The rows of the table, from all rounds except the first."""
    rounds = run(Mean(parameters=parameters), replies, 1 + repeats, store)[1:]
    size = 4.0 * parameters
    for values in rounds:
        values["ratio"] = values["mean"] / values["read"]
        values["speed"] = replies * size / values["mean"] / 1e9
        values["models"] = values["memory"] / size
        values["memory"] /= MB
    return {name: spread([values[name] for values in rounds]) for name in ROWS}


def run(algorithm: Mean, sites: int, rounds: int, store: int) -> list[dict[str, float]]:
    """The measurements of the server actor in each round of a real run, on a Ray whose store fits the replies."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_LD_PRELOAD_ON_WORKERS": "1"}  # as `raysim run`
    import ray  # reads these variables at import

    from raysim.distributed.admission import request_actors
    from raysim.distributed.run_driver import stream_events

    ray.init(address="local", object_store_memory=store, logging_level=logging.ERROR, include_dashboard=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = plan(algorithm, sites, rounds, Path(folder))
            events = list(stream_events(run, request_actors(run), "aggregate"))
        check_unspilled()
    finally:
        ray.shutdown()
    rows = [event.values for event in events if isinstance(event, RoundEvent)]
    return [{name.removeprefix("server/"): value for name, value in row.items()} for row in rows]


def plan(algorithm: Mean, sites: int, rounds: int, out: Path) -> Plan:
    """A run of `algorithm` at `sites` sites with minimal data."""
    arguments = [f"task.data.sites={sites}", "task.data.outside=[]", "task.data.cases=1", "task.data.val=1"]
    arguments += ["task.data.test=0", "task.data.size=[8, 8]", "task.network.channels=[2, 4]"]
    (out / "checkpoints").mkdir()
    config = resolve(parse_pairs(arguments))
    config = replace(
        config,
        algorithm=algorithm,
        rounds=rounds,
        evaluate_every=rounds,
        checkpoint_every=rounds,
        metric="inside/val/dice",
        resources=Resources(client_actors=ACTORS),
    )
    return build_plan(config, out)


def check_unspilled() -> None:
    """Ends the benchmark if Ray spilled replies to disk."""
    import ray
    from ray._private.internal_api import memory_summary  # the text of `ray memory --stats-only`

    if "Spilled" in (text := memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)):
        sys.exit(f"nothing was measured, because Ray spilled replies to disk:\n{text}")


if __name__ == "__main__":
    sys.exit(main())
