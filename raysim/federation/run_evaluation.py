"""Evaluation of a finished run on other data or at other sites, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raysim.config.merge import merge
from raysim.config.resolve import resolve, to_mapping
from raysim.config.schema import RunConfig
from raysim.core.contracts import ProgressCallback, Task
from raysim.core.errors import ConfigError, RunError
from raysim.core.events import Event, Progress, RunFinished
from raysim.core.formatting import format_argument, join_names
from raysim.data.file_paths import absolute_path
from raysim.federation.continuation import with_kept_weights
from raysim.federation.evaluation import evaluate_sites
from raysim.federation.fleet import EVALUATION_PHASE, BaseFleet
from raysim.federation.plan import Plan
from raysim.federation.trained_run import TrainedRun, without_training
from raysim.federation.validation import check_adaptation
from raysim.storage.evaluation_files import write_evaluation
from raysim.tasks.table_config import ANOTHER_TABLE, TableData
from raysim.tasks.tabular import Tabular
from raysim.training.test_time_adaptation import ADAPTATIONS, OutsideAdaptation, affine_parameters

# The keys that an evaluation uses; those of the task and the algorithm must fit the trained networks.
USED_KEYS = (
    *("task", "algorithm", "metric", "anonymous_cases", "backend", "ray_address", "resources", "site_timeout_s"),
)
SPLIT_KEYS = ("val", "folds", "fold")  # of task.data: which rows are training, val and test rows


def evaluation_config(run: TrainedRun, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration of the run with `overrides`, a nested mapping of keys.

    Raises ConfigError for keys that an evaluation does not use, for another algorithm and for another network, or
    another trained part of it, and for other splits of the rows that the run has used.
    """
    if unused := [key for key in overrides if key not in USED_KEYS]:
        raise ConfigError(f"{join_names(unused)}: an evaluation does not train; use keys of {', '.join(USED_KEYS)}")
    values = to_mapping(without_training(run.config))
    for key in ("task", "algorithm"):
        given = overrides.get(key, {})
        name = given if isinstance(given, str) else dict(given).get("name", values[key]["name"])
        if name != values[key]["name"]:
            raise ConfigError(f"{key}={name}: the run was trained with {key}={values[key]['name']}; remove the key")
    of_table, new_table = isinstance(run.config.task.data, TableData), _has_new_table(run, overrides)
    if of_table and new_table:
        values = merge(values, {"task": {"data": _data_changes(run)}})
    config = resolve(merge(values, overrides))
    if of_table and not new_table:
        _check_splits(run.config.task.data, config.task.data)
    if getattr(config.task, "network", None) != getattr(run.config.task, "network", None):
        raise ConfigError("task.network: the run was trained with another network; remove the key")
    if getattr(config.algorithm, "trainable", None) != getattr(run.config.algorithm, "trainable", None):
        raise ConfigError("algorithm.trainable: the run has trained another part of the network; remove the key")
    return config


def _check_splits(old: TableData, new: TableData) -> None:
    """Raises ConfigError if rows with which the run has trained could be val or test rows of the evaluation."""
    keys = [*SPLIT_KEYS, "seed"] if old.val or old.folds else SPLIT_KEYS
    for key in keys:
        if getattr(new, key) != getattr(old, key):
            given, trained = (format_argument(f"task.data.{key}", getattr(data, key)) for data in (new, old))
            raise ConfigError(
                f"{given}: the run was trained with {trained}, so training rows would be evaluated; remove the key, or "
                "set task.data.table to a table with other rows"
            )


def written_config(run: TrainedRun, config: RunConfig) -> RunConfig:
    """The content of config.yaml of an evaluation: `config` with the keys of training, by which runs are compared."""
    old = run.config
    return replace(
        config, cohort=old.cohort, chaos=old.chaos, early_stopping=old.early_stopping, min_replies=old.min_replies
    )


def _has_new_table(run: TrainedRun, overrides: Mapping[str, Any]) -> bool:
    task = overrides.get("task", {})
    data = task.get("data", {}) if isinstance(task, Mapping) else {}
    table = data.get("table") if isinstance(data, Mapping) else None
    return table is not None and absolute_path(str(table)) != getattr(run.config.task.data, "table", None)


def _data_changes(run: TrainedRun) -> dict[str, Any]:
    data = run.config.task.data
    changes = {key: value for key, value in {"root": None, **ANOTHER_TABLE}.items() if hasattr(data, key)}
    if run.config.task.name == "classification":  # the new table may lack cases of a class
        changes["classes"] = dict(run.summary["classes"])
    return changes


def evaluation_task(run: TrainedRun, config: RunConfig, progress: ProgressCallback | None = None) -> Task:
    """The task of an evaluation. The inside sites of the run are inside, all other sites are outside.

    Raises ConfigError for data that do not fit the networks of the run, and for an adaptation to outside sites that the
    network does not support.
    """
    task_config = with_kept_weights(config.task, run.directory)
    if isinstance(task_config, Tabular) and task_config.data.table != run.config.task.data.table:
        task = task_config.build(progress, reference=run.config.task.data)
    else:
        task = task_config.build(progress)
    for what, found, expected in (
        ("examples of shape", task.shape, tuple(run.summary["shape"])),
        ("the classes", list(task.class_values), list(run.summary["classes"])),
    ):
        if found != expected:
            raise ConfigError(
                f"the data have {what} {found}, but the run was trained with {expected}; prepare the data as in the run"
            )
    sites = (*task.inside, *task.outside)
    inside = tuple(site for site in sorted(sites) if site in run.inside)
    outside = tuple(site for site in sorted(sites) if site not in run.inside)
    task = replace(run.with_trained_part(task), inside=inside, outside=outside)
    _check_adaptation(config.algorithm, task)
    return task


def _check_adaptation(algorithm: Any, task: Task) -> None:
    check_adaptation(algorithm, task)
    adaptation = getattr(algorithm, "outside", None)
    if isinstance(adaptation, OutsideAdaptation) and adaptation.name in ADAPTATIONS and task.outside:
        try:
            affine_parameters(task.start(0))
        except RunError as error:
            raise ConfigError(str(error)) from error


def evaluate_run(run: TrainedRun, plan: Plan, fleet: BaseFleet) -> Iterator[Event]:
    """Yields the progress, then RunFinished with the content of summary.json.

    Evaluates the state of the run at all sites of the plan's task, and writes the scores to the plan's directory.
    """
    fleet.accounting.open_round(run.number - 1)
    states = run.point.client_states
    fleet.client_states.restore({site: states[site] for site in plan.task.inside if site in states})
    yield Progress(phase=EVALUATION_PHASE, total=len(plan.sites))
    method = replace(run.method, algorithm=plan.config.algorithm)  # its keys of prediction may be given
    evaluation = evaluate_sites(method, run.point.state, fleet)
    summary = write_evaluation(
        plan.directory,
        plan.task,
        evaluation.scores,
        evaluation.cases,
        chosen=plan.metric,
        facts=run.facts,
        number=run.number,
        rounds=run.rounds,
        anonymous=plan.config.anonymous_cases,
    )
    yield RunFinished(summary)
