"""Other engines on the work of overhead.py: their seconds per steady round over raysim's, measured alternately.

python benchmarks/peers.py [--repeats N] [--venvs FOLDER] [--json FILE] [PEER ...]; `make bench-peers` makes FOLDER.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import WARM, machine, parser, publish, spread, steady
from overhead import ACTORS, ENGINE, FUSED
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WORK = Path(__file__).with_name("peers")
SITES = 64
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An engine: its package, its virtual environment, a program of that environment, and the program's arguments."""

    venv: str
    package: str
    arguments: Sequence[str]
    meaning: str
    program: str = "python"
    sites: int = SITES
    warm: int = WARM  # rounds before the steady ones
    limit: float | None = None  # lower limit of its seconds over raysim's


PEERS = {
    "flower": Peer(
        venv="flower",
        package="flwr",
        arguments=["flower_work.py", "DATA", "--recreate"],
        meaning="Flower, Ray simulation, 2 actors of 1 CPU, network and data created per message, as documented",
        limit=2.2,
    ),
    # No limit, because Flower's documentation keeps only the source of the data between messages.
    "flower-kept": Peer(
        venv="flower",
        package="flwr",
        arguments=["flower_work.py", "DATA"],
        meaning="Flower, the same, network and data kept in its actors by custom code",
    ),
    "pfl": Peer(
        venv="pfl",
        package="pfl",
        program="torchrun",
        arguments=["--standalone", "--nnodes=1", f"--nproc_per_node={ACTORS}", "pfl_work.py", "DATA"],
        meaning="pfl-research, torchrun, 2 processes",
        limit=0.85,
    ),
    "nvflare": Peer(
        venv="nvflare",
        package="nvflare",
        arguments=["nvflare_work.py", "DATA", "--sites=16", "--threads=2", "--rounds=4"],
        meaning="NVFlare, simulator, 2 threads (16 sites, scaled per site)",
        sites=16,
        warm=1,
        limit=15.0,
    ),
    # No limit, because polling takes most of such a round for any number of sites, so scaling the seconds is imprecise.
    "nvflare-8": Peer(
        venv="nvflare",
        package="nvflare",
        arguments=["nvflare_work.py", "DATA", "--sites=8", "--threads=8"],
        meaning="NVFlare, simulator, a process for each site (8 sites, scaled per site)",
        sites=8,
    ),
}


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("seconds of a round of other engines over raysim's")
    options.add_argument("peers", nargs="*", metavar="PEER", help=f"one or more of {', '.join(PEERS)} (default: all)")
    options.add_argument("--repeats", type=int, default=3, help="runs of each peer, each between two of raysim")
    options.add_argument("--venvs", type=Path, default=ROOT / ".peers", help="where the peers' environments are")
    args = options.parse_args()
    names = args.peers or list(PEERS)
    if unknown := set(names) - set(PEERS):
        options.error(f"unknown peer {', '.join(sorted(unknown))}; expected {', '.join(PEERS)}")
    os.environ.update(QUIET)
    found = measured(names, args.venvs.absolute(), args.repeats)
    publish(found, table(found), args.json)
    return int(any(missed(name, figures) for name, figures in found["peers"].items()))


def measured(names: Sequence[str], venvs: Path, repeats: int) -> dict[str, Any]:
    """The machine, raysim's and the loop's seconds, and each peer's seconds and ratios over the repeats."""
    found = machine() | {"repeats": repeats}
    found["versions"] |= {PEERS[name].package: installed(PEERS[name], venvs) for name in names}
    loops, engines = [], []
    peers: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as data:
        subprocess.run([sys.executable, WORK / "work.py", data], check=True)
        for _ in range(repeats):
            loops.append(steady(FUSED))
            engines.append(steady(ENGINE))
            for name in names:
                seconds = steady(command(PEERS[name], venvs, data), PEERS[name].warm) * SITES / PEERS[name].sites
                engines.append(steady(ENGINE))
                # Over raysim directly before and after, because the load of the machine changes over time.
                peers[name].append((seconds, seconds / statistics.mean(engines[-2:])))
    found |= {"loop": spread(loops), "engine": spread(engines)}
    return found | {"peers": {name: figures(peers[name]) for name in names}}


def figures(runs: Sequence[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """The spread of a peer's seconds and ratios over the repeats."""
    seconds, ratios = zip(*runs, strict=True)
    return {"seconds": spread(seconds), "ratio": spread(ratios)}


def command(peer: Peer, venvs: Path, data: str) -> list[str]:
    """The command line that runs `peer` on the data in `data`."""
    places = {"DATA": data} | {path.name: str(path) for path in WORK.glob("*.py")}
    return [
        str(venvs / peer.venv / "bin" / peer.program),
        *(places.get(argument, argument) for argument in peer.arguments),
    ]


def installed(peer: Peer, venvs: Path) -> str:
    """The version of the peer's package."""
    python = venvs / peer.venv / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} does not exist; run: make bench-peers")
    code = f"from importlib.metadata import version; print(version({peer.package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def missed(name: str, figures: dict[str, Any]) -> bool:
    limit = PEERS[name].limit
    return limit is not None and figures["ratio"]["median"] < limit


def table(found: dict[str, Any]) -> Table:
    """The seconds and ratios."""
    title = "a round of 64 sites of 16 images, 32x32; U-Net of 7,433 parameters"
    result = Table("engine", title=f"{title}; {found['repeats']} repeats")
    for column in ("seconds", "over raysim", "lowest", "highest", "at least"):
        result.add_column(column, justify="right")
    result.add_row(f"raysim on Ray, {ACTORS} client actors of 1 CPU", f"{found['engine']['median']:.3f}", "1")
    loop = found["loop"]["median"] / ACTORS
    result.add_row(f"plain loop, fused, over {ACTORS}", f"{loop:.3f}", f"{loop / found['engine']['median']:.3f}")
    for name, row in found["peers"].items():
        ratios = (f"{value:.3f}" for value in row["ratio"].values())
        limit = PEERS[name].limit
        result.add_row(PEERS[name].meaning, f"{row['seconds']['median']:.3f}", *ratios, f"{limit:g}" if limit else "")
    return result


if __name__ == "__main__":
    sys.exit(main())
