"""Builds the specification of a search from its request: opens the data and checks all configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from secrets import token_hex

from raysim.config.resolve import resolve
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.required_paths import required_paths
from raysim.distributed import node_probe
from raysim.federation.plan import build_plan, chosen_metric, prepare_task, selection_metric
from raysim.federation.validation import validate
from raysim.reporting.search_console import SearchConsole
from raysim.search import distributions
from raysim.search.objectives import check_no_test_scores, parse_objectives
from raysim.search.request import SearchRequest
from raysim.search.schedulers import SCHEDULERS
from raysim.search.space import Space
from raysim.search.space_validation import check_boundaries_on_task
from raysim.search.spec import FederationVariant, SearchSpec
from raysim.search.trial_store import load_records


def build_search_spec(
    request: SearchRequest, out: Path, console: SearchConsole, *, boundaries_checked: bool = False
) -> SearchSpec:
    """The specification of the search in `out`. Raises ConfigError for a value that is invalid for the data or task.

    `boundaries_checked`: whether an earlier session has checked the bounds of the space.
    """
    options, config = request.options, resolve(request.base)
    with console.live():
        task = prepare_task(config.task, console.show)
    sites = _held_out_sites(options.holdout, config, task)
    _check_folds(options.folds, config)
    space, variants = _space_and_variants(request, config.seed, sites)
    spec = SearchSpec(
        out=out.absolute(),
        base=request.base,
        space=space,
        variants=variants,
        objectives=(),
        better=task.score.better,
        rounds=config.rounds,
        folds=options.folds,
        trial_count=request.trial_count(space, config.seed),
        scheduler=options.scheduler,
        failed_federations=options.failed_federations,
        session=token_hex(8),
        task=task,
        task_config=config.task,
        cwd=os.getcwd(),
        versions=node_probe.versions(),
        data_paths=required_paths(task, config.task)[0],
    )
    tasks = _check_federations(spec, sites)
    if not boundaries_checked:
        check_boundaries_on_task(spec, tasks[0])
    spec = replace(spec, objectives=parse_objectives(options.metric, tasks, config.metric, bool(sites)))
    if spec.space.domains.keys() - {"holdout"}:
        check_no_test_scores(spec.objectives, tasks, options.metric, config)
    if request.options.warm_start is not None:
        _check_earlier_values(Path(request.options.warm_start), spec)
    _report_trial_count(request, spec, console)
    return _with_best_rounds(spec, tasks, sites, console) if options.judge == "best" else spec


def _check_earlier_values(directory: Path, spec: SearchSpec) -> None:
    """Raises ConfigError if no trial of the search to start from has a value of the objectives."""
    wanted, records = [each.row_column for each in spec.objectives], load_records(directory)
    if not any(all(name in record.last for name in wanted) for record in records):
        raise ConfigError(
            f"--from {directory}: none of its {pluralize(len(records), 'trial')} has a value of "
            f"{' and '.join(wanted)}; use its --metric, or remove --from"
        )


def _report_trial_count(request: SearchRequest, spec: SearchSpec, console: SearchConsole) -> None:
    """Print the number of trials if it is smaller than requested, because no configuration is drawn twice."""
    requested = request.options.trials * len(spec.space.grid(all_keys=False))
    if not request.samples_whole_grid and spec.trial_count < requested:
        console.say(
            f"the space has {pluralize(spec.trial_count, 'configuration')}, so the search has "
            f"{pluralize(spec.trial_count, 'trial')} instead of {requested}; for more trials add keys or values"
        )


def _with_best_rounds(
    spec: SearchSpec, tasks: Sequence[Task], held_out: Sequence[str], console: SearchConsole
) -> SearchSpec:
    """`spec` with the best rounds of the trials as the compared ones, unless no best round can be chosen."""
    if SCHEDULERS[spec.scheduler].transfers_state:  # the scheduler compares the states that it copies
        return spec
    metric = None if held_out else spec.metric
    if not all(selection_metric(task, chosen_metric(task, metric)) for task in tasks):
        console.say("no inside site has val cases to choose a best round, so the last rounds are compared")
        return spec
    return replace(spec, compared_round="best", objectives=tuple(each.of_best_round for each in spec.objectives))


def _held_out_sites(holdout: str | None, config: RunConfig, task: Task) -> tuple[str, ...]:
    if holdout is None:
        return ()
    _check_table("--holdout: only the sites of a table can be held out", config)
    if holdout == "each":
        return task.inside
    if holdout not in task.inside:
        raise ConfigError(f"--holdout {holdout}: expected each, or one of the inside sites: {', '.join(task.inside)}")
    return (holdout,)


def _check_folds(folds: int | None, config: RunConfig) -> None:
    if folds is None:
        return
    _check_table("--folds: only the rows of a table can be divided into folds", config)
    if config.task.data.folds is not None:
        raise ConfigError(f"--folds {folds} contradicts task.data.folds={config.task.data.folds}; remove one of them")


def _check_table(limit: str, config: RunConfig) -> None:
    if not hasattr(getattr(config.task, "data", None), "table"):
        raise ConfigError(f"{limit}, but this task generates its data; use a task with task.data.table")


def _space_and_variants(
    request: SearchRequest, seed: int, sites: Sequence[str]
) -> tuple[Space, tuple[FederationVariant, ...]]:
    """The space, and the federations of each trial: one per seed, held-out site and fold.

    If no other key is searched, the held-out sites are the space, and each held-out site is a trial.
    """
    seeds, folds = range(seed, seed + request.options.seeds), _folds(request.options.folds)
    if request.space.domains:
        held_out = tuple(sites) or (None,)
        return request.space, tuple(FederationVariant(*each) for each in product(seeds, held_out, folds))
    space = Space({"holdout": distributions.listed_choices(list(sites), "holdout", grid=True)})
    return space, tuple(FederationVariant(each, None, fold) for each, fold in product(seeds, folds))


def _folds(folds: int | None) -> Sequence[int | None]:
    return (None,) if folds is None else range(folds)


def _check_federations(spec: SearchSpec, sites: Sequence[str]) -> list[Task]:
    """The task of each held-out site and fold, or the task of the search.

    Raises ConfigError if a run cannot be planned.
    """
    seed, tasks = spec.variants[0].seed, []
    for site, fold in product(sites or (None,), _folds(spec.folds)):
        config = spec.config({}, FederationVariant(seed, site, fold))
        task = spec.task if config.task == spec.task_config else config.task.build(None)
        assert task is not None
        validate(build_plan(config, Path.cwd(), task=task))
        tasks.append(task)
    return tasks
