"""A search from what a user asks for to its files: checked, placed, run, gone on with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt
from ray.tune import ResultGrid

from raysim import domains, space as spaces
from raysim.config import RunConfig, build, merge, nested_keys, resolve
from raysim.driver import ray_running
from raysim.errors import ConfigError, RunError
from raysim.launch import alone, by_value, claimed, environment, planned
from raysim.ledger import Ledger
from raysim.loader import loaded
from raysim.log import write
from raysim.objectives import objectives
from raysim.plan import Cell, Scheduler, Search
from raysim.record import write_json
from raysim.rehearsal import rehearse
from raysim.run import check_cohort
from raysim.seats import needs
from raysim.search_display import SearchDisplay
from raysim.search_report import write_search_report
from raysim.space import Space
from raysim.suggest import OptunaSource, Source, Suggester, grid_source, random_source
from raysim.tracking import Tracker, check_tracker
from raysim.trials import Entry, load
from raysim.tuning import fit, session, waiting
from raysim.types import Task

SEARCH = "search.yaml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a search goes about it."""

    trials: Annotated[int, Gt(0), "trials; a grid has its own number"] = 16
    metric: Annotated[str | None, "what trials are judged by, several with commas: worst, outside, bytes, ..."] = None
    scheduler: Annotated[Scheduler, "what ends or changes trials on their way"] = "fifo"
    searcher: Annotated[Literal["random", "grid", "optuna"], "where the values of a trial come from"] = "random"
    max_concurrent: Annotated[int | None, Gt(0), "trials at once; as many as fit where not given"] = None
    seeds: Annotated[int, Gt(0), "seeds of each trial, which is judged by their mean"] = 1
    holdout: Annotated[str | None, "a site not to train on, or each in turn; trials are judged there"] = None
    keep: Annotated[Literal["best", "all"], "whose last checkpoints stay when a trial has ended"] = "best"
    track: Annotated[Tracker | None, "mlflow or wandb, beside the search's own files"] = None
    budget: Annotated[float | None, Ge(0), "seconds after which it ends"] = None


@dataclass(frozen=True)
class Asked:
    """What is searched and how: what search.yaml holds."""

    base: Mapping[str, Any]
    space: Space
    options: Options


def asked(space: Space, given: Mapping[str, Any], words: Mapping[str, Any], options: Mapping[str, Any]) -> Asked:
    """A search of `space` over the keys that a file gives, and `words`, which win over the space. Everything that can
    be known without the data is checked. Raises ConfigError."""
    kept = {key: domain for key, domain in space.domains.items() if not _has(words, key)}
    base = dict(given)
    for key, value in space.fixed.items():
        base = merge(base, nested_keys(key, list(value) if isinstance(value, tuple) else value))
    base = merge(base, words)
    points = [{key: value for key, value in point.items() if key in kept} for point in space.points]
    found = Asked(base, Space(kept, {}, tuple(point for point in points if point)), build(Options, options, "search"))
    resolve(base)
    spaces.check(found.space, base)
    _check_together(found)
    return found


def _has(words: Mapping[str, Any], key: str) -> bool:
    at: Any = words
    for part in key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return True


def _check_together(asked: Asked) -> None:
    space, options = asked.space, asked.options
    several, scheduler = "," in (options.metric or ""), options.scheduler
    check_tracker(options.track)
    if not space.domains and options.holdout is None:
        raise ConfigError("nothing is searched: name a space, or give --space KEY=uniform(low, high)")
    if "seed" in space.domains and options.seeds > 1:
        raise ConfigError("--seeds repeats every trial, and the space searches seed too; keep one of them")
    if several and (options.searcher != "optuna" or scheduler != "fifo"):
        raise ConfigError(f"--metric {options.metric}: several objectives need --searcher optuna and --scheduler fifo")
    if "rounds" in space.domains and scheduler != "fifo":
        raise ConfigError(f"rounds is searched, and --scheduler {scheduler} compares trials round by round; use fifo")
    if options.searcher != "random" and options.searcher != "grid" and any(d.is_grid() for d in space.domains.values()):
        raise ConfigError("grid(...) is for --searcher random or grid; Optuna chooses by itself: choice(...)")
    if scheduler == "hyperband" and options.max_concurrent:
        raise ConfigError("--max-concurrent and --scheduler hyperband wait for each other; use asha")
    if scheduler == "pbt":
        _check_pbt(space)


def _check_pbt(space: Space) -> None:
    for key in space.domains:
        if not key.startswith("algorithm."):
            raise ConfigError(f"--scheduler pbt changes keys in the middle of a run, and {key} cannot change there")
    if not space.domains:
        raise ConfigError("--scheduler pbt needs keys to change: --space algorithm.lr=loguniform(1e-4, 1e-1)")


def tune(asked: Asked, out: str | None, show: SearchDisplay, *, dry: bool = False) -> ResultGrid | None:
    """Run the search into the new folder `out`, or the next free one in `runs`. Raises RaysimError, KeyboardInterrupt."""
    search = _prepared(asked, Path(out or "runs"), show)
    if dry:
        with ray_running(asked.base.get("address")):
            rehearse(search, needs(search, asked.options), _first(asked, search), show)
        return None
    with claimed(out, "tune") as folder, alone(folder):
        search = replace(search, out=folder)
        return _run(asked, search, [], show)


def resume(folder: Path, changes: Mapping[str, Any], show: SearchDisplay) -> ResultGrid | None:
    """Go on with the search in `folder`: trials that have ended stay, the others go on, more are added if asked."""
    if not (folder / SEARCH).is_file():
        raise ConfigError(f"{folder} is no search's folder: it holds no {SEARCH}")
    asked = _read(folder / SEARCH)
    asked = replace(asked, options=build(Options, {**asdict(asked.options), **changes}, "search"))
    _check_together(asked)
    with alone(folder):
        search, entries = replace(_prepared(asked, folder, show), out=folder), load(folder)
        if not any(entry.unfinished for entry in entries) and len(entries) >= _total(asked, search):
            raise ConfigError(f"{folder} is done, all {len(entries)} trials; for more: --trials {2 * len(entries)}")
        return _run(asked, search, entries, show)


def _run(asked: Asked, search: Search, entries: Sequence[Entry], show: SearchDisplay) -> ResultGrid:
    by_value(*{type(part) for part in (search.described, resolve(asked.base).algorithm)})
    show.say("starting Ray")
    with ray_running(asked.base.get("address")) as dashboard:
        show.say(f"Ray is up; dashboard: {dashboard or 'none'}")
        need = needs(search, asked.options)
        _write(search.out, asked)
        ledger = Ledger(search, entries, asked.options.keep)
        total = _total(asked, search)
        source, left = _source(asked, search, entries), waiting(search, entries)
        first = max((entry.number for entry in entries), default=0) + 1
        suggester = Suggester(source, left, first, total, ledger.open)
        with show.live(need.search, ledger, total, need.at_once):
            grid, halt = fit(
                need.search,
                ledger,
                suggester,
                need.bundles,
                show,
                total=len(left) + max(0, total - first + 1),
                max_concurrent=asked.options.max_concurrent,
                budget=asked.options.budget,
                track=asked.options.track,
            )
    return _ended(ledger, grid, halt, show)


def _ended(ledger: Ledger, grid: ResultGrid, halt: Any, show: SearchDisplay) -> ResultGrid:
    out = ledger.search.out
    ledger.tables()
    show.say(f"report: {write_search_report(out, ledger)}")
    show.finish(ledger, out)
    if halt.asked:
        show.say(f"interrupted; raysim tune --resume {out} goes on with it")
        raise KeyboardInterrupt
    if halt.over and any(entry.unfinished for entry in ledger.entries.values()):
        show.say(f"the time is up; raysim tune --resume {out} goes on with it")
    if ledger.entries and all(entry.status == "failed" for entry in ledger.entries.values()):
        cause = next(iter(ledger.entries.values())).cause
        raise RunError(f"every trial has failed; the first: {cause}")
    return grid


def _prepared(asked: Asked, out: Path, show: SearchDisplay) -> Search:
    """The search with its data opened and its trials' federations known. Raises ConfigError for what is wrong."""
    options, base = asked.options, asked.base
    config = resolve(base)
    with show.preparing() as progress:
        task = config.task.build(progress)
    sites = _held_out(options.holdout, config, task)
    seeds = range(config.seed, config.seed + options.seeds)
    spread = not asked.space.domains  # nothing but the held-out site differs: each is a trial of its own
    held: list[str | None] = [None] if spread else [*sites] or [None]
    space = Space({"holdout": domains.listed_choices(list(sites), "holdout", grid=True)}) if spread else asked.space
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
    )
    judged = [search.config(values, cell) for values, cell in _one_of_each(search, sites)]
    tasks = [task if each.task == config.task else each.task.build(None) for each in judged]
    for each, built in zip(judged, tasks, strict=True):
        planned(each, built, Path.cwd())
    _check_corners(search, tasks[0])
    return replace(search, objectives=objectives(options.metric, tasks[0], config.metric, bool(sites)))


def _one_of_each(search: Search, sites: Sequence[str]) -> list[tuple[dict[str, Any], Cell]]:
    seed = search.cells[0].seed
    return [({}, Cell(seed, site)) for site in sites] or [({}, Cell(seed))]


def _held_out(holdout: str | None, config: RunConfig, task: Task) -> tuple[str, ...]:
    if holdout is None:
        return ()
    if not hasattr(config.task.data, "table"):
        raise ConfigError("--holdout: only sites of a table can be held out; this task draws its own")
    if holdout == "each":
        return task.inside
    if holdout not in task.inside:
        raise ConfigError(f"--holdout {holdout}: expected each, or one of the inside sites: {', '.join(task.inside)}")
    return (holdout,)


def _check_corners(search: Search, task: Task) -> None:
    """Raises ConfigError for an end of the space that this task or an algorithm itself refuses."""
    plain = [key for key in search.space.domains if not key.startswith(("task.", "data.", "network", "holdout"))]
    for key, values in search.space.corners():
        if key not in plain:
            continue
        config = search.config(values, search.cells[0])
        try:
            check_cohort(task, config.cohort.size)
            config.algorithm.init(task)
        except ConfigError as error:
            raise ConfigError(f"the search space: {key} is {domains.written(search.space.domains[key])}: {error}") from error


def _total(asked: Asked, search: Search) -> int:
    """How many trials there will be."""
    if asked.options.searcher == "grid" or not asked.space.domains:
        return len(search.space.grid())
    return asked.options.trials * len(search.space.grid(only=False))


def _source(asked: Asked, search: Search, entries: Sequence[Entry]) -> Source:
    seed = resolve(asked.base).seed
    if asked.options.searcher == "grid" or not asked.space.domains:
        return grid_source(search.space)
    if asked.options.searcher == "optuna":
        return OptunaSource(search.space, seed, search.objectives, [e for e in entries if not e.unfinished])
    return random_source(search.space, seed)


def _first(asked: Asked, search: Search) -> list[dict[str, Any]]:
    source, total = _source(asked, search, []), _total(asked, search)
    return [values for number in range(1, total + 1) if (values := source.draw(number)) is not None]


def _write(out: Path, asked: Asked) -> None:
    held = {
        "schema_version": 1,
        "base": asked.base,
        "space": {key: domains.written(domain) for key, domain in asked.space.domains.items()},
        "points": [{k: list(v) if isinstance(v, tuple) else v for k, v in point.items()} for point in asked.space.points],
        "options": {f.name: getattr(asked.options, f.name) for f in fields(Options)},
    }
    write(out / SEARCH, yaml.safe_dump(held, sort_keys=False))
    if not (out / "env.json").exists():
        write_json(out / "env.json", environment())


def _read(path: Path) -> Asked:
    held = loaded(path.read_text(encoding="utf-8"), str(path))
    space = {key: domains.read(text, key) for key, text in held["space"].items()}
    return Asked(held["base"], spaces.of_mapping(space, held["points"]), build(Options, held["options"], "search"))

