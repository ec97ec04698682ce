"""Seconds of a round on several nodes, compared with the cost model of docs/scaling.md.

python benchmarks/nodes.py [SITES ...] [--nodes N ...] [--json FILE]      as root, on Linux with iproute2

The nodes are simulated hosts in network namespaces of this machine, connected by a bridge (tests/support/hosts.py), so
they share its cores. There are four client actors in every case, with one Ray CPU each. The cases differ in the nodes
of the actors, and in the network traffic. The only unknown of the model, the seconds of a site's training, is taken
from the first case; all other cases are predicted from it.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import WARM, machine, parser, publish
from overhead import FEDERATION
from rich.table import Table
from scaling import CALL, MEAN, NETWORK, REPLY

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.hosts import Host, hosts, why_not  # noqa: E402 - needs the path above

SITES, NODES = (64, 16, 256, 1000), (1, 2, 4)
ROUNDS, ACTORS, MODEL = 10, 4, 4 * 7433  # bytes of the model


def main() -> int:
    """Measure, print, and write JSON if requested."""
    options = parser("seconds of a round on several nodes over the prediction of the cost model")
    options.add_argument("sites", nargs="*", type=int, default=SITES, help=f"default: {' '.join(map(str, SITES))}")
    options.add_argument("--nodes", nargs="+", type=int, default=NODES, help=f"default: {' '.join(map(str, NODES))}")
    args = options.parse_args()
    if why := why_not():
        options.error(why)
    found = machine()
    found["cases"] = cases = list(measured(args.sites, args.nodes))
    first = cases[0]
    site = (first["round"] - overhead(first)) / first["sites"]
    for case in cases:
        case["predicted"] = overhead(case) + site * case["sites"]
    publish(found, table(cases), args.json)
    return 0


def overhead(case: dict[str, float]) -> float:
    """Seconds of a round in the cost model, without the training of sites, which share the machine's cores."""
    sites, others = case["sites"], case["nodes"] - 1
    network = (others + sites * others / case["nodes"]) * MODEL / NETWORK  # models down, replies up
    return CALL * ACTORS + REPLY * sites + MEAN * MODEL * sites + network


def measured(sites: Sequence[int], nodes: Sequence[int]) -> Iterator[dict[str, float]]:
    for count in nodes:
        with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), count) as head:
            for each in sites:
                seconds = rounds(head, Path(folder) / f"run-{each}", each)
                yield {"nodes": count, "sites": each, "round": statistics.median(seconds)}


@contextmanager
def cluster(folder: Path, count: int) -> Iterator[Host]:
    """The head of a Ray cluster of `count` hosts, including the head."""
    share = str(ACTORS // count)
    with hosts(folder, count) as (_, made):
        head = made[0]
        common = ["--num-cpus", share, "--num-gpus", "0", "--disable-usage-stats", "--object-store-memory", "500000000"]
        execute(head, "ray", "get-auth-token", "--generate")
        where = ["--node-ip-address", "10.77.0.1", "--port", "6379", "--include-dashboard", "false"]
        execute(head, "ray", "start", "--head", *where, *common)
        token = (head.home / ".ray" / "auth_token").read_text()
        for number, host in enumerate(made[1:], start=2):
            (host.home / ".ray").mkdir(exist_ok=True)
            (host.home / ".ray" / "auth_token").write_text(token)
            where = ["--address", "10.77.0.1:6379", "--node-ip-address", f"10.77.0.{number}"]
            execute(host, "ray", "start", *where, *common)
        yield head


def execute(host: Host, *arguments: str) -> None:
    """Run a command on `host`; ends the benchmark if it fails."""
    done = host.run(*arguments, env={"RAY_AUTH_MODE": "token"})
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stdout}")


def rounds(head: Host, out: Path, sites: int) -> list[float]:
    """Seconds of the steady rounds of a run on the cluster."""
    arguments = [sys.executable, "-m", "raysim", "run", *FEDERATION, f"task.data.sites={sites}", "task.data.cases=8"]
    arguments += [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", f"checkpoint_every={ROUNDS}"]
    arguments += [f"resources.client_actors={ACTORS}", "ray_address=10.77.0.1:6379", "--out", str(out)]
    run = head.start(arguments, {"RAY_AUTH_MODE": "token"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    lines: list[str] = []
    ends: list[float] = []
    for line in run.stdout:
        lines.append(line)
        if re.match(r"round +\d+/", line):
            ends.append(time.perf_counter())
    if run.wait():
        sys.exit("".join(lines))
    return [end - start for start, end in pairwise(ends)][WARM - 1 : -1]


def table(cases: Sequence[dict[str, Any]]) -> Table:
    made = Table("nodes", "sites", title=f"one step of 8 images at a site, {ACTORS} client actors, all on one machine")
    for column in ("round, s", "predicted, s", "round / predicted"):
        made.add_column(column, justify="right")
    for case in cases:
        seconds = (case["round"], case["predicted"])
        row = [f"{case['nodes']:.0f}", f"{case['sites']:.0f}", *(f"{each:.3f}" for each in seconds)]
        made.add_row(*row, f"{seconds[0] / seconds[1]:.2f}")
    return made


if __name__ == "__main__":
    sys.exit(main())
