"""Room for what a run will hold: refused before the first actor where it cannot fit, told where it will be slow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from raysim.core.errors import PlacementError
from raysim.core.events import Notice
from raysim.core.formatting import format_bytes
from raysim.federation.plan import Plan
from raysim.federation.round_loop import cohort_size


def check_object_store(plan: Plan) -> Iterator[Notice]:
    """A note if a round's replies go through the disk. Raises PlacementError if they fit neither memory nor disk."""
    count = cohort_size(plan.config.cohort.size, len(plan.task.inside))
    needed = (count + 2) * plan.model_bytes  # each site's, and the server's before and after
    store = int(ray.cluster_resources().get("object_store_memory", 0))
    if needed <= store:
        return
    here: Any = ray._private.worker._global_node
    spill = Path(here.get_session_dir_path())
    free = shutil.disk_usage(spill).free
    what = f"the models of a round ({count} sites) take {format_bytes(needed)}; Ray's object stores hold {format_bytes(store)}"
    if needed > store + free:
        raise PlacementError(
            f"{what}, and the disk that they spill to ({spill}) has {format_bytes(free)} free. What would fit: "
            f"cohort={max(1, int(count * (store + free) / needed * 0.9))}, a smaller network, or a larger store "
            "(ray start --object-store-memory)"
        )
    yield Notice(f"{what}: what is over goes through the disk, which is slow")
