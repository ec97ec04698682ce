"""Writes pictures/ of a finished run that has none, such as the best trial of a search, from its checkpoint."""

from __future__ import annotations

from dataclasses import replace

import torch

from raysim.config.schema import Resources
from raysim.core.contracts import Task
from raysim.federation.plan import Plan
from raysim.federation.runner import local_fleet
from raysim.federation.site_pictures import save_pictures
from raysim.federation.trained_run import TrainedRun
from raysim.storage import checkpoint
from raysim.storage.run_directory import BEST, CHECKPOINTS


def draw_pictures(run: TrainedRun, task: Task) -> None:
    """Write pictures/ of the run, in this process. `task` is the task of the run, with all tensors of its network.

    The cases are those of the round in `run`. Without a GPU in this process, the predictions are computed on the CPU.
    """
    config = run.config if torch.cuda.is_available() else replace(run.config, resources=Resources())
    plan = Plan(config=config, task=run.with_trained_part(task), directory=run.directory)
    fleet = local_fleet(plan)
    fleet.client_states.restore(run.point.client_states)
    fleet.accounting.open_round(run.number - 1)
    paths = (checkpoint.path_of(run.directory / folder, run.number) for folder in (BEST, CHECKPOINTS))
    cases = next(checkpoint.read_cases(path) for path in paths if path.is_dir())
    save_pictures(plan, fleet, run.point.state, cases)
