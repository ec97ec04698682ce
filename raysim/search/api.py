"""A search from what a user asks for to its files: checked, placed, run, gone on with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray.tune import ResultGrid

from raysim.config.merge import expand_short_keys, merge, nested_keys
from raysim.config.resolve import build, resolve
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.data.required_paths import required_paths
from raysim.distributed import node_probe
from raysim.distributed.cluster_checks import check_cluster
from raysim.distributed.connection import connect
from raysim.distributed.environment import pickle_by_value
from raysim.federation.plan import build_plan
from raysim.federation.validation import validate
from raysim.reporting.console import Terminal
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.search_html_report import write_search_report
from raysim.search import distributions
from raysim.search.boundary_checks import check_boundary_points
from raysim.search.dry_run import print_dry_run
from raysim.search.objectives import objectives
from raysim.search.request import (
    SearchOptions,
    SearchRequest,
    build_request as asked_for,
    check_options,
    check_trials,
    fixed_trial_count_reason,
    read_request,
    write_request,
)
from raysim.search.results import SearchResults
from raysim.search.samplers import OptunaSource, SampleSource, TuneSearcher, grid_source, random_source
from raysim.search.search_control import search_control
from raysim.search.space import Space, from_mapping, points_of
from raysim.search.space_files import read_space
from raysim.search.spec import FederationVariant, SearchSpec
from raysim.search.trial_resources import plan_trials
from raysim.search.trial_store import SEARCH_FILE, TrialRecord, load_records
from raysim.search.tune_adapter import new_session_id, resumable_trials, run_tuner
from raysim.storage.run_directory import LOCK_FILE, exclusive_lock, reserve_directory, runs_directory

CHANGED = ("trials", "budget", "max_concurrent", "keep_checkpoints", "tracker")  # when a search goes on


def tune(
    asked: SearchRequest, out: str | None, show: SearchConsole, *, dry: bool = False, logged: bool = False
) -> ResultGrid | None:
    """Run the search into the new folder `out`, or the next free one in `runs_directory`; with `dry`, only tell of it.

    `logged`: Tune keeps a log of its own too, of which its result is made.
    """
    search = _build_search(asked, Path(out) if out else runs_directory(), show)
    if dry:
        with connect(asked.base.get("ray_address")):
            need = plan_trials(search, _total(asked, search), asked.options.max_concurrent)
            print_dry_run(need, _first(asked, search), show)
        return None
    with reserve_directory(out, "tune") as folder, exclusive_lock(folder):
        search = replace(search, out=folder)
        return _run(asked, search, [], show, logged)


def resume(
    folder: Path, changes: Mapping[str, Any], show: SearchConsole, address: str | None = None
) -> ResultGrid | None:
    """Go on with the search in `folder`: trials that have ended stay, the others go on, more are added if asked.

    `address` is that of the Ray to join, if it is another than before.
    """
    if not (folder / SEARCH_FILE).is_file():
        raise ConfigError(f"{folder} is no search's folder: it holds no {SEARCH_FILE}")
    if fixed := [f"--{name}" for name in changes if name not in CHANGED]:
        raise ConfigError(f"{', '.join(fixed)}: of a search that goes on only {', '.join(CHANGED)} may change")
    asked = read_request(folder / SEARCH_FILE)
    asked = replace(asked, options=build(SearchOptions, {**asdict(asked.options), **changes}, "search"))
    check_options(asked)
    check_trials(asked, changes)
    if address is not None:
        asked = replace(asked, base={**asked.base, "ray_address": address})
    if not os.path.isdir(asked.cwd):  # that of a job goes with its Ray
        show.say(f"the search began in {asked.cwd}, which is no folder here: its paths start in {os.getcwd()} now")
        asked = replace(asked, cwd=os.getcwd())
    with exclusive_lock(folder), chdir(asked.cwd):
        search, records = replace(_build_search(asked, folder, show, known=True), out=folder), load_records(folder)
        if not any(record.unfinished for record in records) and not _new(asked, search, records):
            more = fixed_trial_count_reason(asked) or f"for more: --trials {2 * asked.options.trials}"
            raise ConfigError(f"{folder} is done, all {len(records)} trials; {more}")
        return _run(asked, search, records, show)


def search(
    space: Mapping[str, Any] | str,
    task: str | Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] = (),
    out: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> ResultGrid:
    """Ray Tune's own result of a search, as `raysim tune` runs it; `out` is then its folder.

    `space` maps dotted keys to distributions of Ray Tune (or to their text), or names a space of `search_spaces`;
    `task` is a task by name, or its keys, and wins over the space's own; `keys` are other dotted keys of a run.
    The options are those of the command: trials, metric, scheduler, searcher, max_concurrent, seeds, holdout, keep_checkpoints,
    tracker, budget (in seconds).
    Raises ConfigError, before anything starts, for whatever is wrong.
    """
    found = read_space(space) if isinstance(space, str) else from_mapping(_texts(space), points)
    if isinstance(space, str) and points:
        found = replace(found, points=points_of(points, found.domains, "search"))
    given = {} if task is None else {"task": dict(task) if isinstance(task, Mapping) else task}
    for key, value in (keys or {}).items():
        given = merge(given, expand_short_keys(nested_keys(key, value)))
    show = SearchConsole(Terminal(quiet=quiet))
    grid = tune(asked_for(found, {}, given, options), out, show, logged=True)
    assert grid is not None
    return grid


def _texts(space: Mapping[str, Any]) -> dict[str, Any]:
    """Texts that write a distribution, as distributions; other text is a value."""
    return {
        key: distributions.parse_distribution(v, key) if isinstance(v, str) and v.endswith(")") else v
        for key, v in space.items()
    }


def _run(
    asked: SearchRequest, search: SearchSpec, records: Sequence[TrialRecord], show: SearchConsole, logged: bool = False
) -> ResultGrid:
    pickle_by_value(*{type(part) for part in (search.task_config, resolve(asked.base).algorithm)})
    show.say("starting Ray")
    with connect(asked.base.get("ray_address")) as dashboard:
        show.say(f"Ray is up; dashboard: {dashboard or 'none'}")
        assert search.task is not None
        if asked.base.get("ray_address") or os.environ.get("RAY_ADDRESS"):
            for note in check_cluster(search.task, search.task_config, [str(search.out / LOCK_FILE)]):
                show.show(note)
        total = _total(asked, search)
        need = plan_trials(search, total, asked.options.max_concurrent)
        if need.growing:
            show.say("the cluster may grow: its autoscaler is asked for nodes for the trials that have no room yet")
        write_request(search.out, asked)
        books = SearchResults(search, records, asked.options.keep_checkpoints)
        source, left, new = (
            _source(asked, search, records),
            resumable_trials(search, records),
            _new(asked, search, records),
        )
        suggester = TuneSearcher(source, left, new, books.open)
        with search_control(books, total) as leader, show.following(need.search, books, total, need.concurrent_trials):
            grid, halt = run_tuner(
                need.search,
                books,
                suggester,
                need.bundles,
                show,
                leader,
                growing=need.growing,
                total=len(left) + len(new),
                max_concurrent=asked.options.max_concurrent,
                pending=need.concurrent_trials if need.growing else 1,
                budget=asked.options.budget,
                tracker=asked.options.tracker,
                logged=logged,
            )
        if not logged:  # all that a search goes on from is in its trials' folders
            shutil.rmtree(grid.experiment_path, ignore_errors=True)
        return _finish(books, grid, halt, show)


def _finish(books: SearchResults, grid: ResultGrid, halt: Any, show: SearchConsole) -> ResultGrid:
    out = books.search.out
    books.tables()
    try:
        show.say(f"report: {write_search_report(out, books, show.total)}")
    except Exception as error:  # noqa: BLE001 - the search has ended, and this changes nothing of it
        show.say(f"report.html was not written: {type(error).__name__}: {error}")
    show.results(books, out)
    if halt.asked:
        show.say(f"interrupted; raysim tune --resume {out} goes on with it")
        raise KeyboardInterrupt
    if halt.unfit:
        raise PlacementError(f"{halt.unfit}; then raysim tune --resume {out} goes on with the search")
    if halt.over and any(record.unfinished for record in books.records.values()):
        show.say(f"the time is up; raysim tune --resume {out} goes on with it")
    if books.records and all(record.status == "failed" for record in books.records.values()):
        cause = next(iter(books.records.values())).cause
        raise RunError(f"every trial has failed; the first: {cause}")
    if not books.best() and any(record.status == "done" for record in books.records.values()):
        wanted = " and ".join(each.column for each in books.search.objectives)
        raise RunError(f"there is no best: no trial has a value of {wanted}; see in {out / 'rounds.parquet'} what has")
    return grid


def _build_search(asked: SearchRequest, out: Path, show: SearchConsole, *, known: bool = False) -> SearchSpec:
    """The search with its data opened and its trials' federations known. Raises ConfigError for what is wrong.

    The ends of a space that is `known`, from an earlier session, were tried then.
    """
    options, base = asked.options, asked.base
    config = resolve(base)
    with show.preparing() as progress:
        task = config.task.build(progress)
    sites = _held_out(options.holdout, config, task)
    seeds = range(config.seed, config.seed + options.seeds)
    spread = not asked.space.domains  # nothing but the held-out site differs: each is a trial of its own
    held: list[str | None] = [None] if spread else [*sites] or [None]
    space = (
        Space({"holdout": distributions.listed_choices(list(sites), "holdout", grid=True)}) if spread else asked.space
    )
    search = SearchSpec(
        out=out.absolute(),
        base=base,
        space=space,
        variants=tuple(FederationVariant(seed, site) for seed in seeds for site in held),
        objectives=(),
        better=task.score.better,
        rounds=config.rounds,
        scheduler=options.scheduler,
        session=new_session_id(),
        task=task,
        task_config=config.task,
        cwd=os.getcwd(),
        versions=node_probe.versions(),
        data_paths=required_paths(task, config.task)[0],
    )
    judged = [search.config(values, cell) for values, cell in _one_of_each(search, sites)]
    tasks = [task if each.task == config.task else each.task.build(None) for each in judged]
    for each, built in zip(judged, tasks, strict=True):
        validate(build_plan(each, Path.cwd(), task=built))
    if not known:
        check_boundary_points(search, tasks[0])
    return replace(search, objectives=objectives(options.metric, tasks, config.metric, bool(sites)))


def _one_of_each(search: SearchSpec, sites: Sequence[str]) -> list[tuple[dict[str, Any], FederationVariant]]:
    seed = search.variants[0].seed
    return [({}, FederationVariant(seed, site)) for site in sites] or [({}, FederationVariant(seed))]


def _held_out(holdout: str | None, config: RunConfig, task: Task) -> tuple[str, ...]:
    if holdout is None:
        return ()
    if not hasattr(getattr(config.task, "data", None), "table"):
        raise ConfigError("--holdout: only sites of a table can be held out; this task draws its own")
    if holdout == "each":
        return task.inside
    if holdout not in task.inside:
        raise ConfigError(f"--holdout {holdout}: expected each, or one of the inside sites: {', '.join(task.inside)}")
    return (holdout,)


def _total(asked: SearchRequest, search: SearchSpec) -> int:
    """How many trials there will be."""
    if fixed_trial_count_reason(asked):
        return len(search.space.grid())
    return asked.options.trials * len(search.space.grid(only=False))


def _new(asked: SearchRequest, search: SearchSpec, records: Sequence[TrialRecord]) -> list[int]:
    """The numbers of the trials that have not begun, or whose file is torn: gaps below those that have."""
    known = {record.number for record in records}
    return [number for number in range(1, max(_total(asked, search), *known, 0) + 1) if number not in known]


def _source(asked: SearchRequest, search: SearchSpec, records: Sequence[TrialRecord]) -> SampleSource:
    seed = resolve(asked.base).seed
    if fixed_trial_count_reason(asked):
        return grid_source(search.space)
    if asked.options.searcher == "optuna":
        return OptunaSource(search.space, seed, search.objectives, [e for e in records if not e.unfinished])
    return random_source(search.space, seed)


def _first(asked: SearchRequest, search: SearchSpec) -> list[dict[str, Any]]:
    source, total = _source(asked, search, []), _total(asked, search)
    return [values for number in range(1, total + 1) if (values := source.draw(number)) is not None]
