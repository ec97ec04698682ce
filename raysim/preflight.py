"""Room for what a run will hold: refused before the first actor where it cannot fit, told where it will be slow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from raysim.data.wording import size
from raysim.errors import PlacementError
from raysim.model import weights
from raysim.rounds import cohort_size
from raysim.run import Note, Plan
from raysim.types import Task

CHECKPOINTS = 3  # on the disk at a time: two that are kept and one that is being written


def model_bytes(task: Task) -> int:
    """The bytes of the task's network as a model."""
    return weights(task.network()).nbytes


def check_disk(folder: Path, model: int) -> None:
    """Raises PlacementError if `folder` has no room for the checkpoints of a model of so many bytes."""
    free, needed = shutil.disk_usage(folder).free, CHECKPOINTS * model
    if free < needed:
        raise PlacementError(
            f"{folder} has {size(free)} free, and checkpoints of this network take {size(needed)} at least. "
            "Make room there, or give another --out"
        )


def check_store(plan: Plan) -> Iterator[Note]:
    """A note if a round's replies go through the disk. Raises PlacementError if they fit neither memory nor disk."""
    count = cohort_size(plan.cohort, len(plan.task.inside))
    needed = (count + 2) * plan.model_bytes  # each site's, and the server's before and after
    store = int(ray.cluster_resources().get("object_store_memory", 0))
    if needed <= store:
        return
    here: Any = ray._private.worker._global_node
    spill = Path(here.get_session_dir_path())
    free = shutil.disk_usage(spill).free
    what = f"the models of a round ({count} sites) take {size(needed)}; Ray's object stores hold {size(store)}"
    if needed > store + free:
        raise PlacementError(
            f"{what}, and the disk that they spill to ({spill}) has {size(free)} free. What would fit: "
            f"cohort={max(1, int(count * (store + free) / needed * 0.9))}, a smaller network, or a larger store "
            "(ray start --object-store-memory)"
        )
    yield Note(f"{what}: what is over goes through the disk, which is slow")
