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

from raysim.config.merge import build, in_full, merge, nested_keys, resolve
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.distributed import node_probe
from raysim.distributed.cluster_checks import agreed
from raysim.distributed.connection import ray_running
from raysim.distributed.diagnostics import data_paths
from raysim.distributed.environment import by_value
from raysim.federation.plan import planned
from raysim.reporting.console import Terminal
from raysim.reporting.search_console import SearchDisplay
from raysim.reporting.search_html_report import write_search_report
from raysim.search import distributions
from raysim.search.boundary_checks import check_corners
from raysim.search.dry_run import rehearse
from raysim.search.objectives import objectives
from raysim.search.request import (
    Asked,
    Options,
    asked as asked_for,
    check_together,
    check_trials,
    numbered,
    read_asked,
    write_asked,
)
from raysim.search.results import Books
from raysim.search.samplers import OptunaSource, Source, Suggester, grid_source, random_source
from raysim.search.search_control import leading
from raysim.search.space import Space, of_mapping, points_of
from raysim.search.space_files import read_space
from raysim.search.spec import Cell, Search
from raysim.search.trial_resources import needs
from raysim.search.trial_store import SEARCH, Entry, load
from raysim.search.tune_adapter import fit, session, waiting
from raysim.storage.run_directory import OWNER, alone, claimed, runs

CHANGED = ("trials", "budget", "max_concurrent", "keep", "track")  # when a search goes on


def tune(
    asked: Asked, out: str | None, show: SearchDisplay, *, dry: bool = False, logged: bool = False
) -> ResultGrid | None:
    """Run the search into the new folder `out`, or the next free one in `runs`; with `dry`, only tell of it.

    `logged`: Tune keeps a log of its own too, of which its result is made.
    """
    search = _prepared(asked, Path(out) if out else runs(), show)
    if dry:
        with ray_running(asked.base.get("address")):
            need = needs(search, _total(asked, search), asked.options.max_concurrent)
            rehearse(need, _first(asked, search), show)
        return None
    with claimed(out, "tune") as folder, alone(folder):
        search = replace(search, out=folder)
        return _run(asked, search, [], show, logged)


def resume(
    folder: Path, changes: Mapping[str, Any], show: SearchDisplay, address: str | None = None
) -> ResultGrid | None:
    """Go on with the search in `folder`: trials that have ended stay, the others go on, more are added if asked.

    `address` is that of the Ray to join, if it is another than before.
    """
    if not (folder / SEARCH).is_file():
        raise ConfigError(f"{folder} is no search's folder: it holds no {SEARCH}")
    if fixed := [f"--{name}" for name in changes if name not in CHANGED]:
        raise ConfigError(f"{', '.join(fixed)}: of a search that goes on only {', '.join(CHANGED)} may change")
    asked = read_asked(folder / SEARCH)
    asked = replace(asked, options=build(Options, {**asdict(asked.options), **changes}, "search"))
    check_together(asked)
    check_trials(asked, changes)
    if address is not None:
        asked = replace(asked, base={**asked.base, "address": address})
    if not os.path.isdir(asked.cwd):  # that of a job goes with its Ray
        show.say(f"the search began in {asked.cwd}, which is no folder here: its paths start in {os.getcwd()} now")
        asked = replace(asked, cwd=os.getcwd())
    with alone(folder), chdir(asked.cwd):
        search, entries = replace(_prepared(asked, folder, show, known=True), out=folder), load(folder)
        if not any(entry.unfinished for entry in entries) and not _new(asked, search, entries):
            more = numbered(asked) or f"for more: --trials {2 * asked.options.trials}"
            raise ConfigError(f"{folder} is done, all {len(entries)} trials; {more}")
        return _run(asked, search, entries, show)


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
    The options are those of the command: trials, metric, scheduler, searcher, max_concurrent, seeds, holdout, keep,
    track, budget (in seconds).
    Raises ConfigError, before anything starts, for whatever is wrong.
    """
    found = read_space(space) if isinstance(space, str) else of_mapping(_texts(space), points)
    if isinstance(space, str) and points:
        found = replace(found, points=points_of(points, found.domains, "search"))
    given = {} if task is None else {"task": dict(task) if isinstance(task, Mapping) else task}
    for key, value in (keys or {}).items():
        given = merge(given, in_full(nested_keys(key, value)))
    show = SearchDisplay(Terminal(quiet=quiet))
    grid = tune(asked_for(found, {}, given, options), out, show, logged=True)
    assert grid is not None
    return grid


def _texts(space: Mapping[str, Any]) -> dict[str, Any]:
    """Texts that write a distribution, as distributions; other text is a value."""
    return {
        key: distributions.read(v, key) if isinstance(v, str) and v.endswith(")") else v for key, v in space.items()
    }


def _run(
    asked: Asked, search: Search, entries: Sequence[Entry], show: SearchDisplay, logged: bool = False
) -> ResultGrid:
    by_value(*{type(part) for part in (search.described, resolve(asked.base).algorithm)})
    show.say("starting Ray")
    with ray_running(asked.base.get("address")) as dashboard:
        show.say(f"Ray is up; dashboard: {dashboard or 'none'}")
        assert search.task is not None
        if asked.base.get("address") or os.environ.get("RAY_ADDRESS"):
            for note in agreed(search.task, search.described, [str(search.out / OWNER)]):
                show.show(note)
        total = _total(asked, search)
        need = needs(search, total, asked.options.max_concurrent)
        if need.growing:
            show.say("the cluster may grow: its autoscaler is asked for nodes for the trials that have no room yet")
        write_asked(search.out, asked)
        books = Books(search, entries, asked.options.keep)
        source, left, new = _source(asked, search, entries), waiting(search, entries), _new(asked, search, entries)
        suggester = Suggester(source, left, new, books.open)
        with leading(books, total) as leader, show.following(need.search, books, total, need.at_once):
            grid, halt = fit(
                need.search,
                books,
                suggester,
                need.bundles,
                show,
                leader,
                growing=need.growing,
                total=len(left) + len(new),
                max_concurrent=asked.options.max_concurrent,
                pending=need.at_once if need.growing else 1,
                budget=asked.options.budget,
                track=asked.options.track,
                logged=logged,
            )
        if not logged:  # all that a search goes on from is in its trials' folders
            shutil.rmtree(grid.experiment_path, ignore_errors=True)
        return _ended(books, grid, halt, show)


def _ended(books: Books, grid: ResultGrid, halt: Any, show: SearchDisplay) -> ResultGrid:
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
    if halt.over and any(entry.unfinished for entry in books.entries.values()):
        show.say(f"the time is up; raysim tune --resume {out} goes on with it")
    if books.entries and all(entry.status == "failed" for entry in books.entries.values()):
        cause = next(iter(books.entries.values())).cause
        raise RunError(f"every trial has failed; the first: {cause}")
    if not books.best() and any(entry.status == "done" for entry in books.entries.values()):
        wanted = " and ".join(each.column for each in books.search.objectives)
        raise RunError(f"there is no best: no trial has a value of {wanted}; see in {out / 'rounds.parquet'} what has")
    return grid


def _prepared(asked: Asked, out: Path, show: SearchDisplay, *, known: bool = False) -> Search:
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
    search = Search(
        out=out.absolute(),
        base=base,
        space=space,
        cells=tuple(Cell(seed, site) for seed in seeds for site in held),
        objectives=(),
        better=task.score.better,
        rounds=config.rounds,
        scheduler=options.scheduler,
        session=session(),
        task=task,
        described=config.task,
        cwd=os.getcwd(),
        versions=node_probe.versions(),
        reads=data_paths(task, config.task)[0],
    )
    judged = [search.config(values, cell) for values, cell in _one_of_each(search, sites)]
    tasks = [task if each.task == config.task else each.task.build(None) for each in judged]
    for each, built in zip(judged, tasks, strict=True):
        planned(each, built, Path.cwd())
    if not known:
        check_corners(search, tasks[0])
    return replace(search, objectives=objectives(options.metric, tasks, config.metric, bool(sites)))


def _one_of_each(search: Search, sites: Sequence[str]) -> list[tuple[dict[str, Any], Cell]]:
    seed = search.cells[0].seed
    return [({}, Cell(seed, site)) for site in sites] or [({}, Cell(seed))]


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


def _total(asked: Asked, search: Search) -> int:
    """How many trials there will be."""
    if numbered(asked):
        return len(search.space.grid())
    return asked.options.trials * len(search.space.grid(only=False))


def _new(asked: Asked, search: Search, entries: Sequence[Entry]) -> list[int]:
    """The numbers of the trials that have not begun, or whose file is torn: gaps below those that have."""
    known = {entry.number for entry in entries}
    return [number for number in range(1, max(_total(asked, search), *known, 0) + 1) if number not in known]


def _source(asked: Asked, search: Search, entries: Sequence[Entry]) -> Source:
    seed = resolve(asked.base).seed
    if numbered(asked):
        return grid_source(search.space)
    if asked.options.searcher == "optuna":
        return OptunaSource(search.space, seed, search.objectives, [e for e in entries if not e.unfinished])
    return random_source(search.space, seed)


def _first(asked: Asked, search: Search) -> list[dict[str, Any]]:
    source, total = _source(asked, search, []), _total(asked, search)
    return [values for number in range(1, total + 1) if (values := source.draw(number)) is not None]
