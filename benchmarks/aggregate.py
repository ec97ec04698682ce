"""What the server's weighted mean costs: its seconds against reading the same bytes once, and its memory.

python benchmarks/aggregate.py [--replies N] [--parameters N] [--repeats N] [--json FILE]

200 replies of 10 million float32 parameters, 8 GB in Ray's object store, made by two real client actors and brought by
the real fleet; the mean is `raysim.mean`, in the round of an algorithm that the real server actor runs.

- read: numpy's quickest pass over all the bytes in the store, one after the other in one thread: an integer sum.
- memory: the most that the server's own memory (RssAnon) grows by while the mean is made.
- error: the largest difference from the mean of every 101st entry worked out in long double, over the entry itself.

A first round is not counted: the store's memory is first touched in it. Replies that did not fit and went to disk end
the benchmark, for then the disk would be measured.
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
STRIDE = 101  # a prime, so that every place in a block is looked at
ROOM = 1.35  # of the replies' bytes: Ray spills from 0.8 of the store on
SPARE = 4e9  # bytes for the processes
PAUSE = 0.02  # seconds between two looks at the memory
MB = 1e6
ROWS = {
    "mean": "the weighted mean: s",
    "read": "reading the same bytes once: s",
    "ratio": "the mean / reading once",
    "speed": "the mean: GB of replies per second",
    "memory": "most memory of the server beside what it had: MB",
    "models": "the same, in models",
    "error": "largest relative error, in steps of float32",
    "map": "making the replies, from call to last answer: s",
}
LIMITS = {"memory": 1000.0, "error": 1.0}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """An algorithm whose round is nothing but a mean of replies, and a look at what that costs."""

    parameters: int

    def init(self, task: Task) -> Model:
        return weights(task.start(0))

    def client(self, site: Site[Any], round: int) -> Reply[Model]:
        """A model of random entries, others at each site and in each round."""
        entries = numpy_generator(round, site.name).random(self.parameters, np.float32)
        return Reply(Model.of({"weight": entries}), weight=1.0 + site.task.inside.index(site.name) % 7)

    def round(self, fleet: Fleet, state: Model) -> tuple[Model, Metrics]:
        number, start = fleet.accounting.round, time.perf_counter()
        replies = fleet.map(self.client, number)
        found = {"map": time.perf_counter() - start}
        if number % 2:  # before the mean or after it, in turn
            found["read"] = read(replies)
        with growth(found):
            start = time.perf_counter()
            model = mean(replies)
            found["mean"] = time.perf_counter() - start
        if not number % 2:
            found["read"] = read(replies)
        return state, found | {"error": error(model["weight"], replies)}

    def predictor(self, site: Site[Any], state: Model) -> None:
        """Nothing to say: this is not about learning."""


def read(replies: Mapping[str, Any]) -> float:
    """Seconds to read every reply's bytes once."""
    start = time.perf_counter()
    for site in replies:
        array = replies[site].payload["weight"]
        array[: len(array) // 2 * 2].view(np.int64).sum()
    return time.perf_counter() - start


@contextmanager
def growth(found: dict[str, float]) -> Iterator[None]:
    """Puts into `found` by how many bytes this process's own memory was larger, at most, than before the block."""
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
    """The largest error of every 101st entry, over the entry, in steps of float32."""
    total, weights = np.zeros(len(found[::STRIDE]), np.longdouble), np.longdouble(0)
    for site in replies:
        reply = replies[site]
        total += reply.payload["weight"][::STRIDE] * np.longdouble(reply.weight)
        weights += reply.weight
    expected = total / weights
    return float((np.abs(found[::STRIDE] - expected) / expected).max() / np.finfo(np.float32).eps)


def main() -> int:
    """Measure, print, and write JSON where asked; 1 if a limit is missed or there is no room."""
    options = parser("seconds and memory of the server's weighted mean of large replies")
    options.add_argument("--replies", type=int, default=REPLIES, help=f"sites (default: {REPLIES})")
    options.add_argument("--parameters", type=int, default=PARAMETERS, help=f"of a reply (default: {PARAMETERS})")
    options.add_argument("--repeats", type=int, default=4, help="rounds that count, after one (default: 4)")
    args = options.parse_args()
    store = int(ROOM * 4 * args.replies * args.parameters)
    check_room(store)
    found = machine() | {"replies": args.replies, "parameters": args.parameters, "repeats": args.repeats}
    found["figures"] = measure(args.replies, args.parameters, args.repeats, store)
    title = f"{args.replies} replies of {args.parameters:,} float32 parameters; {args.repeats} repeats"
    publish(found, spread_table(title, ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


def check_room(store: int) -> None:
    """Ends the benchmark if the machine has too little memory for an object store of so many bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    shared = shutil.disk_usage("/dev/shm").free
    if free < store + SPARE or shared < store:
        sys.exit(
            f"nothing was measured: the replies need an object store of {store / 1e9:.1f} GB in shared memory, and "
            f"{SPARE / 1e9:.0f} GB beside it; free are {shared / 1e9:.1f} GB of /dev/shm and {free / 1e9:.1f} GB of "
            "memory. Take fewer replies (--replies) or smaller ones (--parameters)"
        )


def measure(replies: int, parameters: int, repeats: int, store: int) -> dict[str, dict[str, float]]:
    """The rows of the table, from every round but the first."""
    rounds = run(Mean(parameters=parameters), replies, 1 + repeats, store)[1:]
    size = 4.0 * parameters
    for values in rounds:
        values["ratio"] = values["mean"] / values["read"]
        values["speed"] = replies * size / values["mean"] / 1e9
        values["models"] = values["memory"] / size
        values["memory"] /= MB
    return {name: spread([values[name] for values in rounds]) for name in ROWS}


def run(algorithm: Mean, sites: int, rounds: int, store: int) -> list[dict[str, float]]:
    """What the server actor measured in each round of a real run, on a Ray with room for its replies."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_LD_PRELOAD_ON_WORKERS": "1"}  # as `raysim run`
    import ray  # reads that when it is imported

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
    """A run of `algorithm` at so many sites, whose own data are as small as can be."""
    words = [f"task.data.sites={sites}", "task.data.outside=[]", "task.data.cases=1", "task.data.val=1"]
    words += ["task.data.test=0", "task.data.size=[8, 8]", "task.network.channels=[2, 4]"]
    (out / "checkpoints").mkdir()
    config = resolve(parse_pairs(words))
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
    """Ends the benchmark if Ray put replies on the disk."""
    import ray
    from ray._private.internal_api import memory_summary  # what `ray memory --stats-only` prints

    if "Spilled" in (said := memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)):
        sys.exit(f"nothing was measured, for Ray put replies on the disk:\n{said}")


if __name__ == "__main__":
    sys.exit(main())
