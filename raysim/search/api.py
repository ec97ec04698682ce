"""Run a search, from its request to its report: new, resumed, or as a dry run. `_run_stages` contains the stages."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray.tune import ResultGrid

from raysim.config.merge import expand_short_keys, merge, nested_keys
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.core.formatting import quote_path
from raysim.distributed.cluster_checks import check_cluster
from raysim.distributed.connection import connect, connected_message
from raysim.distributed.local_ray import target_address
from raysim.distributed.placement_wait import TrialWait
from raysim.distributed.run_environment import pickle_by_value
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.search_html_report import write_search_report
from raysim.reporting.terminal import Terminal
from raysim.search import distributions
from raysim.search.best_pictures import draw_best_trial
from raysim.search.build_spec import build_search_spec
from raysim.search.dry_run import measure_times, print_dry_run
from raysim.search.options import RESUMABLE, RESUME_OPTIONS, option_name
from raysim.search.request import (
    SearchRequest,
    build_options,
    build_request,
    check_options,
    check_trial_count,
    read_request,
    write_request,
)
from raysim.search.results import SearchResults
from raysim.search.samplers import OPTUNA_FILE, build_sampler
from raysim.search.search_control import search_control
from raysim.search.space import Space, from_mapping, parse_points
from raysim.search.space_files import read_space
from raysim.search.spec import SearchSpec
from raysim.search.trial_resources import plan_trials
from raysim.search.trial_store import TrialRecord, load_records
from raysim.search.trial_tracking import TrialTracking
from raysim.search.tune_adapter import SearchStopper, TuneCallback, run_tuner
from raysim.search.tune_searcher import TuneSearcher, new_trial_numbers, resumable_trials
from raysim.storage.run_directory import LOCK_FILE, SEARCH_FILE, exclusive_lock, reserve_directory, runs_directory


def tune(
    space: Mapping[str, Any] | str,
    task: str | Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] = (),
    out: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> ResultGrid:
    """Run a search, like `raysim tune`. Returns Ray Tune's result, with a row per trial in `get_dataframe()`.

    `space` maps dotted keys to distributions: text such as "loguniform(1e-4, 1e-2)", or distributions of `ray.tune`.
    Plain values are fixed. If `space` is a string, it is the name of a space in `search_spaces`, or a Python file.
    `task` is the name of a task or its keys, and takes precedence over the space. `keys` are further dotted keys of a
    run. `points` are values to try first. `out` is the directory of the search; by default it is a new one in runs/.
    `quiet` suppresses the console.

    The options are those of the command: trials, metric, judge, scheduler, searcher, stop, max_concurrent, seeds,
    holdout, folds, failed_federations, keep_checkpoints, tracker, budget in seconds, and warm_start, the directory
    that the command names with --from.

    Raises ConfigError, before anything starts, for a wrong key, value or option; PlacementError if no trial fits the
    cluster; RunError if every trial failed.
    """
    overrides: dict[str, Any] = {} if task is None else {"task": dict(task) if isinstance(task, Mapping) else task}
    for key, value in (keys or {}).items():
        overrides = merge(overrides, expand_short_keys(nested_keys(key, value)))
    request = build_request(_read_space(space, points), {}, overrides, options)
    return start_search(request, out, SearchConsole(Terminal(quiet=quiet)), keep_tune_log=True)


def _read_space(space: Mapping[str, Any] | str, points: Sequence[Mapping[str, Any]]) -> Space:
    if isinstance(space, str):
        named = read_space(space)
        return replace(named, points=parse_points(points, named.domains, "search")) if points else named
    parsed = {
        key: distributions.parse_distribution(value, key) if isinstance(value, str) and value.endswith(")") else value
        for key, value in space.items()
    }
    return from_mapping(parsed, points)


def start_search(
    request: SearchRequest, out: str | None, console: SearchConsole, *, keep_tune_log: bool = False
) -> ResultGrid:
    """Run a new search in the directory `out`, or in the next free one in `runs_directory`.

    Raises what `tune` raises. The result is complete only with `keep_tune_log`.
    """
    spec = build_search_spec(request, Path(out) if out else runs_directory(), console)
    with reserve_directory(out, "tune") as directory, exclusive_lock(directory):
        return _run_stages(request, replace(spec, out=directory), [], console, keep_tune_log=keep_tune_log)


def dry_run(request: SearchRequest, out: str | None, console: SearchConsole) -> None:
    """Print the trials of a new search, their resources and the estimated time, without starting it."""
    spec = build_search_spec(request, Path(out) if out else runs_directory(), console)
    _pickle_user_classes(request, spec)
    with connect(request.base.get("ray_address")):
        placement = plan_trials(spec, request.options)
        sampler = build_sampler(request, spec, [])
        samples = (sampler.sample(number) for number in range(1, spec.trial_count + 1))
        trials = [values for values in samples if values is not None]
        times, ended_at = measure_times(placement, trials), time.perf_counter()
    times = replace(times, end=times.end + time.perf_counter() - ended_at)
    print_dry_run(placement, trials, times, console)


def _pickle_user_classes(request: SearchRequest, spec: SearchSpec) -> None:
    pickle_by_value(type(spec.task_config), type(resolve(request.base).algorithm))


def resume_search(
    directory: Path, changes: Mapping[str, Any], console: SearchConsole, ray_address: str | None = None
) -> ResultGrid:
    """Resume the search in `directory`: ended trials are kept, unfinished ones continue, and new ones may be added.

    `changes` are the options that change; `ray_address` is the Ray cluster to join, if it has changed.
    """
    if not (directory / SEARCH_FILE).is_file():
        raise ConfigError(
            f"{directory} is not the directory of a search: it has no {SEARCH_FILE}; give one, such as runs/tune-001"
        )
    if fixed := [option_name(name) for name in changes if name not in RESUME_OPTIONS]:
        raise ConfigError(f"{', '.join(fixed)}: a resumed search may change only {RESUMABLE}")
    request = _changed_request(read_request(directory / SEARCH_FILE), changes, ray_address)
    with _opened(directory, request, console) as (request, spec):
        records = load_records(directory)
        if not any(record.unfinished for record in records) and not new_trial_numbers(spec, records):
            more = _how_to_add_trials(request, spec, records)
            raise ConfigError(f"{directory} is done, all {len(records)} trials have ended; {more}")
        return _run_stages(request, replace(spec, out=directory), records, console)


def rebuild_report(directory: Path, console: SearchConsole) -> None:
    """Write the tables and report.html of the search in `directory` again, from the files of its trials.

    Raises ConfigError for data that cannot be opened, and for a search that is active.
    """
    with _opened(directory, read_request(directory / SEARCH_FILE), console) as (request, spec):
        report_search(SearchResults(spec, load_records(directory), request.options.keep_checkpoints), console)


@contextmanager
def _opened(
    directory: Path, request: SearchRequest, console: SearchConsole
) -> Iterator[tuple[SearchRequest, SearchSpec]]:
    """A block with the lock of a search, in its working directory: its request and its specification."""
    if not os.path.isdir(request.cwd):  # the directory of a job is removed with its Ray cluster
        console.say(
            f"the search was started in {request.cwd}, which does not exist here: relative paths now start from "
            f"{os.getcwd()}"
        )
        request = replace(request, cwd=os.getcwd())
    with exclusive_lock(directory), chdir(request.cwd):
        yield request, build_search_spec(request, directory, console, boundaries_checked=True)


def _how_to_add_trials(request: SearchRequest, spec: SearchSpec, records: Sequence[TrialRecord]) -> str:
    if reason := request.fixed_trial_count_reason:
        return f"{reason}, so none can be added"
    samples = math.ceil(len(records) / len(spec.space.grid(all_keys=False)))
    doubled = replace(request, options=replace(request.options, trials=2 * samples))
    if doubled.trial_count(spec.space, spec.variants[0].seed) <= len(records):
        return "every configuration of the space has been tried; for more trials start a search with more values"
    return f"to add trials: --trials {2 * samples}"


def _changed_request(request: SearchRequest, changes: Mapping[str, Any], ray_address: str | None) -> SearchRequest:
    options = build_options({**asdict(request.options), **changes})
    base = request.base if ray_address is None else {**request.base, "ray_address": ray_address}
    request = replace(request, options=options, base=base)
    check_options(request)
    check_trial_count(request, changes)
    return request


def _run_stages(
    request: SearchRequest,
    spec: SearchSpec,
    records: Sequence[TrialRecord],
    console: SearchConsole,
    *,
    keep_tune_log: bool = False,
) -> ResultGrid:
    """Connect, place, run and report the search; `records` are the trials of its earlier sessions."""
    options = request.options
    _pickle_user_classes(request, spec)
    console.say("starting Ray")
    with connect(request.base.get("ray_address")) as dashboard:
        console.say(connected_message(dashboard))
        _check_nodes(request, spec, console)
        placement = plan_trials(spec, options)
        if placement.growing:
            console.say(
                "the cluster can grow: raysim requests nodes from its autoscaler for the trials that do not fit"
            )
        write_request(spec.out, request)
        results = SearchResults(spec, records, options.keep_checkpoints)
        resumed, new_numbers = resumable_trials(spec, records), new_trial_numbers(spec, records)
        tracking = [TrialTracking(name, results, console)] if (name := request.tracker) else []
        sampler = build_sampler(request, spec, records, spec.out / OPTUNA_FILE)
        stagnates = results.stagnates if options.stop == "auto" else lambda: False
        searcher = TuneSearcher(sampler, resumed, new_numbers, results.start_trial, stagnates)
        stopper = SearchStopper(options.budget)
        with search_control(results, spec.trial_count) as control, console.live_search(results, placement):
            trial_wait = TrialWait(placement.bundles, placement.growing)
            callback = TuneCallback(results, console, control, stopper, trial_wait)
            grid = run_tuner(placement, options, searcher, callback, tracking, keep_tune_log=keep_tune_log)
        if not keep_tune_log:  # a search resumes from its trials' directories
            shutil.rmtree(grid.experiment_path, ignore_errors=True)
        report_search(results, console)
        if searcher.stopped:
            console.say(
                f"the best value has not improved in {results.stagnation_trials} trials, so the search ends with "
                f"{len(searcher.new_numbers)} trials not started; to start them: raysim tune --resume "
                f"{quote_path(spec.out)} --stop never"
            )
        for each in tracking:
            each.close()
        raise_outcome(results, stopper, console)
    return grid


def _check_nodes(request: SearchRequest, spec: SearchSpec, console: SearchConsole) -> None:
    """Check the nodes of an existing cluster before trials are placed on them. Raises NodeError."""
    if target_address(request.base.get("ray_address")):
        assert spec.task is not None
        for notice in check_cluster(spec.task, spec.task_config, [str(spec.out / LOCK_FILE)]):
            console.show(notice)


def report_search(results: SearchResults, console: SearchConsole) -> None:
    """Write the tables, the pictures of the best trial and report.html, and print the best trials."""
    results.write_tables()
    try:
        draw_best_trial(results)
    except Exception as error:  # noqa: BLE001 - the search has ended, and its results are in the tables
        console.say(f"the report has no pictures of the best trial: {type(error).__name__}: {error}")
    try:
        console.say(f"report: {write_search_report(results)}")
    except Exception as error:  # noqa: BLE001 - as above
        console.say(f"report.html was not written: {type(error).__name__}: {error}")
    console.print_results(results)


def raise_outcome(results: SearchResults, stopper: SearchStopper, console: SearchConsole) -> None:
    """Raise if the search was interrupted, could not run its trials, or has no best trial."""
    out, records = results.spec.out, list(results.records.values())
    if stopper.stop_requested:
        console.say(f"interrupted; to continue: raysim tune --resume {quote_path(out)}")
        raise KeyboardInterrupt
    if stopper.cannot_run:
        raise PlacementError(f"{stopper.cannot_run}; then continue the search: raysim tune --resume {quote_path(out)}")
    if stopper.budget_spent and any(record.unfinished for record in records):
        console.say(f"the time budget is spent; to continue: raysim tune --resume {quote_path(out)}")
    if records and all(record.failed for record in records):
        raise RunError(f"all trials have failed; the first one: {records[0].cause}")
    if not results.best() and any(record.done for record in records):
        wanted = " and ".join(each.column for each in results.spec.objectives)
        raise RunError(
            f"there is no best trial: no trial has a value of {wanted}; {out / 'rounds.parquet'} has the values of all "
            "rounds"
        )
