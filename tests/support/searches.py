"""Small searches by command, and their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.cli.main import main

TINY = [
    *("task.data.sites=3", "task.data.outside=[]", "task.data.cases=4", "task.data.test=2", "task.data.val=2"),
    *("task.data.size=[16,16]", "task.network.channels=[4,8]", "task.network.num_res_units=0", "backend=local"),
]


LR = "algorithm.lr=loguniform(1e-4,1e-2)"


ONE = ["--max-concurrent", "1"]  # one process, which is reused


def tune(out: Path, *arguments: str) -> int:
    return main(["tune", *TINY, *arguments, "--out", str(out)])


def trials(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "trials.parquet").set_index("trial")


def left_behind() -> list[str]:
    """Actors, placement groups and CPUs that are still in use, after waiting for their release."""
    import ray

    found: list[str] = []
    for _ in range(60):
        found = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        found += [f"group {g['state']}" for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
        found += [f"{missing:g} CPU"] if missing else []
        if not found:
            return []
        time.sleep(0.25)
    return found


def rounds_done(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (out / "trials").glob("*/log.jsonl"))


def searched(out: Path, *pairs: str, space: Sequence[str] = (LR,), scheduler: str = "fifo", judge: str = "best") -> Any:
    """The specification of a search in `out`, which is not started."""
    from raysim.config.merge import parse_pairs
    from raysim.reporting.search_console import SearchConsole
    from raysim.reporting.terminal import Terminal
    from raysim.search.build_spec import build_search_spec
    from raysim.search.request import build_request
    from raysim.search.space import Space, from_cli

    tiny = [pair for pair in TINY if space == (LR,) or "network" not in pair]
    one = build_request(
        Space(from_cli(space)), {}, parse_pairs([*pairs, *tiny]), {"scheduler": scheduler, "judge": judge}
    )
    return replace(build_search_spec(one, out, SearchConsole(Terminal(quiet=True))), out=out)
