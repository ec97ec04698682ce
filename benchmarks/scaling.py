"""A round on simulated clusters: the engine's scheduler with clocks instead of actors.

`Dispatcher` assigns the sites as on Ray, and the seconds of each actor are summed. The CPU time of the scheduler is
measured. The costs of bytes and replies are the constants below, from the other benchmarks.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

from measuring import machine, parser, publish
from rich.table import Table

from raysim.core.events import Progress
from raysim.distributed.actor_pool import ActorPool
from raysim.distributed.dispatcher import Dispatcher
from raysim.distributed.load_balancing import assign, rebalance
from raysim.federation.accounting import ClientStateStore, FleetOptions, RoundAccounting

CALL = 0.003  # seconds that a call costs an actor (overhead.py: 2 to 4 ms)
REPLY = 0.0005  # seconds that a reply costs the server (overhead.py: 0.03 s for 64)
MEAN = 2.08 / 8e9  # seconds of the server for each byte that it sums (aggregate.py)
NETWORK = 25e9 / 8  # bytes per second into a node, and out of it


class Clock:
    """An actor that only advances a clock."""

    def __init__(self, name: str, costs: dict[str, float]) -> None:
        self.name, self.costs, self.free, self.done = name, costs, 0.0, list[tuple[float, Any]]()
        self.execute = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._take))
        self.now = 0.0

    def _take(self, order: Any, groups: list[tuple[str, ...]], *_: Any) -> list[Any]:
        self.free = max(self.free, self.now) + CALL + sum(self.costs[site] for group in groups for site in group)
        ref = object()
        self.done.append((self.free, ref))
        return [ref]


def simulated(sites: int, actors: int, seconds: float) -> dict[str, float]:
    """One round: seconds from its start to its last reply, and the seconds of the scheduler in it."""
    random.seed(0)
    costs = {f"site-{i:05}": random.lognormvariate(0.0, 0.5) * seconds for i in range(sites)}
    names = [f"client-{i:03}" for i in range(actors)]
    start = time.process_time()
    site_to_actor = assign(costs, names)
    first = time.process_time() - start
    start = time.process_time()
    site_to_actor = rebalance(site_to_actor, costs, names, {})
    again = time.process_time() - start
    clocks = {name: Clock(name, costs) for name in names}
    queues = {name: deque[tuple[str, ...]]() for name in names}
    for site in sorted(costs, key=costs.__getitem__, reverse=True):
        queues[site_to_actor[site]].append((site,))
    pool = ActorPool(clocks, site_to_actor, clocks.__getitem__)
    fleet: Any = SimpleNamespace(
        group_queues=lambda groups: queues,
        pool=pool,
        accounting=RoundAccounting(),
        progress=Progress(),
        options=FleetOptions(0, 1),
        client_states=ClientStateStore(),
        call_seconds=dict(costs),
    )
    dispatch = Dispatcher(fleet, None, None, ())
    now, spent, waiting = 0.0, 0.0, list[tuple[float, int, Any]]()
    while True:
        start = time.process_time()
        more = dispatch._fill_actors()
        spent += time.process_time() - start
        now += time.process_time() - start  # the actors wait for the scheduler
        for clock in clocks.values():
            for end, ref in clock.done:
                heapq.heappush(waiting, (end, id(ref), ref))
            clock.done.clear()
        if not more:
            even = sum(costs.values()) / actors
            return {"seconds": now, "even": even, "scheduler": spent, "assign": first, "settled": again}
        end, _, ref = heapq.heappop(waiting)
        now = max(now, end) + REPLY * len(dispatch.in_flight.pop(ref).sites)
        for clock in clocks.values():
            clock.now = now


def main() -> None:
    args = parser(__doc__ or "").parse_args()
    found: dict[str, Any] = {**machine(), "rounds": []}
    columns = (
        "nodes",
        "sites",
        "a site, s",
        "model, MB",
        "compute, s",
        "even, s",
        "scheduler, s",
        "down, s",
        "up, s",
        "mean, s",
    )
    table = Table(*columns, title="a round")
    for nodes, sites, seconds, model in (
        *((1, 1_000, 1.0, 2e6), (8, 1_000, 1.0, 2e6), (64, 1_000, 10.0, 2e6)),
        *((64, 10_000, 1.0, 2e6), (64, 10_000, 10.0, 2e6), (64, 10_000, 10.0, 40e6)),
    ):
        one = simulated(sites, 8 * nodes, seconds)
        down, up = (nodes - 1) * model / NETWORK, sites * model * (nodes - 1) / nodes / NETWORK
        row = {"nodes": nodes, "sites": sites, "site": seconds, "model": model, **one, "down": down, "up": up}
        row["mean"] = sites * model * MEAN
        found["rounds"].append(row)
        shown = (seconds, model / 1e6, one["seconds"], one["even"], one["scheduler"], down, up, row["mean"])
        table.add_row(str(nodes), f"{sites:,}", *(f"{value:.3g}" for value in shown))
    publish(found, table, args.json)


if __name__ == "__main__":
    main()
