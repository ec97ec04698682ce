"""Checks of a run that need its task, before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from raysim.core.contracts import Algorithm, Task
from raysim.core.errors import ConfigError, PlacementError
from raysim.core.formatting import format_bytes, join_names
from raysim.core.model import weights
from raysim.core.seeding import seeded
from raysim.core.suggestions import did_you_mean


def check_training(task: Task) -> None:
    """Raises ConfigError if an inside site has nothing to train on."""
    empty = [site for site in task.inside if not task.sizes[site].get("train", 0)]
    if not task.inside:
        raise ConfigError("every site is an outside site: nobody is left to train; shorten task.data.outside")
    if empty:
        named = join_names([repr(site) for site in empty])
        raise ConfigError(
            f"no training rows at {named}: every inside site trains. Give it rows with split train, or only judge it: "
            f"task.data.outside=[{', '.join([*task.outside, *empty][:8])}]"
        )


def check_last_batch(task: Task) -> None:
    """Raises ConfigError if a site's last batch of a pass is a single example and the network cannot train on one."""
    size = task.batch_size
    single = [site for site in task.inside if size == 1 or task.sizes[site]["train"] % size == 1]
    if not single:
        return
    example = torch.from_numpy(task.open(single[0]).train.inputs[:1])
    try:
        with torch.no_grad():
            task.start(0).train()(example)
    except ValueError as error:  # batch statistics of one value
        raise ConfigError(
            f"task.batch_size={size} leaves a last batch of one example at '{single[0]}' "
            f"({task.sizes[single[0]]['train']} training examples), on which the network cannot train: {error}. "
            "Choose another batch size, fewer levels, or another norm"
        ) from error


def check_algorithm(algorithm: Algorithm[Any], task: Task, seed: int, rounds: int) -> None:
    """Raises ConfigError for a task, or a number of rounds, that the algorithm refuses.

    Whatever else goes wrong in it, the run tells of. An algorithm that cannot do with any number of rounds has a method
    `check_rounds(rounds)`.
    """
    try:
        if check := getattr(algorithm, "check_rounds", None):
            check(rounds)
        with seeded(seed, "init"):
            algorithm.init(task)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - with its traceback, when it comes again
        return


def check_sites(task: Task, named: Collection[str]) -> None:
    """Raises ConfigError for a site under resources.sites that the task does not have."""
    sites = (*task.inside, *task.outside)
    for site in named:
        if site not in sites:
            raise ConfigError(
                f"resources.sites: there is no site {site!r}{did_you_mean(site, sites)}; sites: {join_names(sites)}"
            )


def check_cohort(task: Task, cohort: float | int) -> None:
    """Raises ConfigError if the cohort is no part of the inside sites."""
    most = 1.0 if isinstance(cohort, float) else len(task.inside)
    if cohort > most:
        raise ConfigError(f"cohort={cohort}: expected a fraction up to 1.0, or 1 to {len(task.inside)} sites")


CHECKPOINTS_ON_DISK = 3  # on the disk at a time: two that are kept and one that is being written


def model_bytes(task: Task) -> int:
    """The bytes of the task's network as a model."""
    return weights(task.network()).nbytes


def check_disk(folder: Path, model: int) -> None:
    """Raises PlacementError if `folder` has no room for the checkpoints of a model of so many bytes."""
    free, needed = shutil.disk_usage(folder).free, CHECKPOINTS_ON_DISK * model
    if free < needed:
        raise PlacementError(
            f"{folder} has {format_bytes(free)} free, and checkpoints of this network take {format_bytes(needed)} at least. "
            "Make room there, or give another --out"
        )
