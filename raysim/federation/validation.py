"""Checks of a run before anything starts. `validate` calls all of them."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from raysim.config.schema import RunConfig
from raysim.core.contracts import Algorithm, Task
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.core.events import EventCallback
from raysim.core.fault_injection import FaultPlan
from raysim.core.formatting import format_argument, format_bytes, join_names, pluralize
from raysim.core.model import describe_unsupported
from raysim.core.seeding import seeded
from raysim.core.suggestions import did_you_mean
from raysim.core.targets import require_classes
from raysim.core.user_errors import describe_exception
from raysim.federation.compilation import check_compilation
from raysim.federation.plan import Plan, chosen_metric, how_to_add_val_cases, warnings_as_notices
from raysim.federation.return_checks import check_state
from raysim.storage.run_directory import has_checkpoint
from raysim.storage.serialization import encode
from raysim.training.test_time_adaptation import ADAPTATIONS, OutsideAdaptation

CHECKPOINTS_ON_DISK = 3  # at the same time: two that are kept, and the one being written
BEST_ON_DISK = 2  # checkpoints in best/: of the best round, and of the best round up to the previous checkpoint


def validate(plan: Plan, emit: EventCallback | None = None) -> None:
    """Raises ConfigError or PlacementError for the first problem that would prevent the run.

    `emit` receives warnings as notices. `admit` checks the cluster later, when Ray is up.
    """
    with warnings_as_notices(emit):
        _validate(plan)


def _validate(plan: Plan) -> None:
    config, task = plan.config, plan.task
    check_faults(plan.faults, config, task)
    check_network(task)
    check_training(task)
    check_last_batch(task)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)
    check_cohort(task, config.cohort.size)
    check_sites(task, config.resources.sites)
    check_early_stopping(plan)
    check_compilation(plan)
    if not has_checkpoint(plan.directory):  # otherwise checkpoints occupy their space already
        copies = CHECKPOINTS_ON_DISK + (BEST_ON_DISK if plan.selection else 0)
        check_disk(plan.directory, plan.model_bytes, copies)
    chosen_metric(task, config.metric)


def check_faults(faults: FaultPlan, config: RunConfig, task: Task) -> None:
    """Raises ConfigError for faults at sites or in rounds that do not exist, and for faults that always end the run."""
    faults.check((*task.inside, *task.outside), config.rounds)
    if faults.drop and config.min_replies == 1.0:
        raise ConfigError(
            f"chaos drops replies, but min_replies={config.min_replies} requires a reply from every site, so the first "
            "dropped reply would end the run; set for example min_replies=0.5"
        )


def check_network(task: Task) -> None:
    """Raises ConfigError if a model cannot hold the network of the task."""
    if problem := describe_unsupported(task.start(0)):
        raise ConfigError(f"the network of the task cannot be sent between server and sites: {problem}")


def check_training(task: Task) -> None:
    """Raises ConfigError if an inside site has no training example."""
    empty = [site for site in task.inside if not task.sizes[site].get("train", 0)]
    if not task.inside:
        raise ConfigError("all sites are outside sites, so no site trains; remove a site from task.data.outside")
    if empty:
        named = join_names([repr(site) for site in empty])
        raise ConfigError(
            f"no training rows at {named}, but every inside site trains. Add rows with split train, or make it an "
            f"outside site: {format_argument('task.data.outside', [*task.outside, *empty])}"
        )


def check_last_batch(task: Task) -> None:
    """Raises ConfigError if a site's last batch of an epoch has one example and the network cannot train on it."""
    size = task.batch_size
    single = [site for site in task.inside if size == 1 or task.sizes[site]["train"] % size == 1]
    if not single:
        return
    example = torch.tensor(task.open(single[0]).train.inputs[:1])
    try:
        with torch.no_grad():
            task.start(0).train()(example)
    except ValueError as error:  # batch statistics of one value
        raise ConfigError(
            f"task.batch_size={size}: the last batch at '{single[0]}' ({task.sizes[single[0]]['train']} training "
            f"examples) has one example, and the network cannot train on a single example: {error}. "
            "Set another task.batch_size, task.network.norm=instance, or a network with fewer downsampling steps"
        ) from error


def check_algorithm(algorithm: Algorithm[Any], task: Task, seed: int, rounds: int) -> None:
    """Raises ConfigError for a task or a number of rounds that the algorithm refuses, and for a wrong first state.

    Also raises ConfigError for any other exception in its `init`, so that such a run leaves no directory. An algorithm
    that restricts the number of rounds has a method `check_rounds(rounds)`, which may also warn.
    """
    try:
        if check := getattr(algorithm, "check_rounds", None):
            check(rounds)
        check_adaptation(algorithm, task)
        with seeded(seed, "init"):
            state = algorithm.init(task)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ConfigError(f"{type(algorithm).__name__}.init failed: {describe_exception(error)}; correct it") from error
    try:
        check_state(state, f"{type(algorithm).__name__}.init")
        encode(state)
    except RunError as error:
        raise ConfigError(str(error)) from error
    except TypeError as error:
        raise ConfigError(f"the state that {type(algorithm).__name__}.init returned: {error}") from error


def check_adaptation(algorithm: Any, task: Task) -> None:
    """Raises ConfigError for an adaptation to outside sites that needs classes, in a task without classes."""
    adaptation = getattr(algorithm, "outside", None)
    if isinstance(adaptation, OutsideAdaptation) and adaptation.name in ADAPTATIONS and task.outside:
        require_classes(task, f"algorithm.outside={adaptation.name}", "lowers the entropy of the softmax")


def check_cohort(task: Task, cohort: float | int) -> None:
    """Raises ConfigError if the cohort is larger than the number of inside sites."""
    most = 1.0 if isinstance(cohort, float) else len(task.inside)
    if cohort > most:
        raise ConfigError(f"cohort={cohort}: expected a fraction up to 1.0, or 1 to {len(task.inside)} sites")


def check_sites(task: Task, named: Collection[str]) -> None:
    """Raises ConfigError for a site under resources.sites that the task does not have."""
    sites = (*task.inside, *task.outside)
    for site in named:
        if site not in sites:
            raise ConfigError(
                f"resources.sites: there is no site {site!r}{did_you_mean(site, sites)}; sites: {join_names(sites)}"
            )


def check_early_stopping(plan: Plan) -> None:
    """Raises ConfigError for early stopping without validation cases. Warns if there are too few evaluations."""
    config, stopping = plan.config, plan.config.early_stopping
    if stopping is None:
        return
    if plan.selection is None:
        cure = how_to_add_val_cases(config.task, plan.task, plan.task.inside)
        raise ConfigError(
            f"early_stopping.patience={stopping.patience}: no site that {plan.metric} refers to has val cases, and a "
            f"run is never ended by a test score; {cure}, or remove early_stopping"
        )
    evaluations = math.ceil(config.rounds / config.evaluate_every)
    if stopping.patience > evaluations - 2:  # one evaluation must come before them, and one must be saved
        warnings.warn(
            f"early_stopping.patience={stopping.patience} has no effect: rounds={config.rounds} with "
            f"evaluate_every={config.evaluate_every} are {pluralize(evaluations, 'evaluation')}; set a lower patience",
            stacklevel=2,
        )


def check_disk(directory: Path, model: int, copies: int = CHECKPOINTS_ON_DISK) -> None:
    """Raises PlacementError if the disk of `directory` has no space for `copies` checkpoints of `model` bytes each."""
    free, needed = shutil.disk_usage(directory).free, copies * model
    if free < needed:
        raise PlacementError(
            f"the disk of {directory} has {format_bytes(free)} free, but checkpoints of this network need at least "
            f"{format_bytes(needed)}. Free some space there, or choose another --out"
        )
