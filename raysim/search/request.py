"""What a user asks of a search, checked as far as it can be without the data, and kept in search.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt

from raysim.config.merge import merge, nested_keys
from raysim.config.resolve import build, resolve
from raysim.config.yaml_loader import load_yaml
from raysim.core.atomic_io import write_json, write_text
from raysim.core.errors import ConfigError
from raysim.distributed.environment import describe_environment
from raysim.search import distributions, space as spaces
from raysim.search.space import Space
from raysim.search.spec import Scheduler
from raysim.search.trackers import Tracker, check_tracker
from raysim.search.trial_store import SEARCH_FILE


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a search goes about it."""

    trials: Annotated[int, Gt(0), "trials; a grid has its own number"] = 16
    metric: Annotated[str | None, "what trials are judged by, several with commas: worst, outside, bytes, ..."] = None
    scheduler: Annotated[Scheduler, "what ends or changes trials on their way"] = "fifo"
    searcher: Annotated[Literal["random", "grid", "optuna"], "where the values of a trial come from"] = "random"
    max_concurrent: Annotated[int | None, Gt(0), "trials at once; as many as fit where not given"] = None
    seeds: Annotated[int, Gt(0), "seeds of each trial, which is judged by their mean"] = 1
    holdout: Annotated[str | None, "a site not to train on, or each in turn; trials are judged there"] = None
    keep_checkpoints: Annotated[Literal["best", "all"], "whose last checkpoints stay when a trial has ended"] = "best"
    tracker: Annotated[Tracker | None, "mlflow or wandb, beside the search's own files"] = None
    budget: Annotated[float | None, Ge(0), "seconds after which it ends"] = None


@dataclass(frozen=True)
class SearchRequest:
    """What is searched and how: what search.yaml holds."""

    base: Mapping[str, Any]
    space: Space
    options: SearchOptions
    cwd: str = ""  # where it was asked: paths in `base` may start there


def build_request(
    space: Space, given: Mapping[str, Any], words: Mapping[str, Any], options: Mapping[str, Any]
) -> SearchRequest:
    """A search of `space` over the keys that a file gives, and `words`, which win over the space. Everything that can
    be known without the data is checked. Raises ConfigError."""
    space = space.of_one(named) if (named := _algorithm(words)) else space
    words, own = space.conditional(words)
    space = space.override(own)
    ordered = sorted(space.domains, key=lambda key: key != "algorithm")  # first of all what other keys hang on
    kept = {key: space.domains[key] for key in ordered if key in own or not _contains_key(words, space.short(key))}
    base = dict(given)
    for key, value in space.fixed.items():
        base = merge(base, nested_keys(key, list(value) if isinstance(value, tuple) else value))
    base = merge(base, words)
    points = [{key: value for key, value in point.items() if key in kept} for point in space.points]
    found = SearchRequest(
        base, Space(kept, {}, tuple(point for point in points if point)), build(SearchOptions, options, "search")
    )
    resolve(base)
    spaces.check(found.space, base)
    check_options(found)
    check_trials(found, options)
    return found


def _algorithm(words: Mapping[str, Any]) -> str | None:
    given = words.get("algorithm")
    name = given.get("name") if isinstance(given, Mapping) else given
    return name if isinstance(name, str) else None


def _contains_key(words: Mapping[str, Any], key: str) -> bool:
    at: Any = words
    for part in key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return not isinstance(at, Mapping) or "name" in at  # other keys of an algorithm or a network do not name it


def check_options(asked: SearchRequest) -> None:
    space, options = asked.space, asked.options
    scheduler = options.scheduler
    check_tracker(options.tracker)
    _check_searcher(asked)
    if not space.domains and options.holdout is None:
        raise ConfigError("nothing is searched: name a space, or give --space KEY=uniform(low, high)")
    if "seed" in space.domains and options.seeds > 1:
        raise ConfigError("--seeds repeats every trial, and the space searches seed too; keep one of them")
    if "rounds" in space.domains and scheduler != "fifo":
        raise ConfigError(f"rounds is searched, and --scheduler {scheduler} compares trials round by round; use fifo")
    if scheduler in ("hyperband", "pbt") and options.max_concurrent:
        raise ConfigError(f"--max-concurrent: under {scheduler} trials wait for one another; use asha")
    if scheduler != "fifo":
        _check_judged(asked)
    if scheduler == "pbt":
        _check_pbt(asked)


def check_trials(asked: SearchRequest, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a number of trials `given` where the space has its own."""
    if "trials" in given and (why := fixed_trial_count_reason(asked)):
        raise ConfigError(f"--trials {given['trials']}: {why}, whatever is asked; leave --trials out")


def fixed_trial_count_reason(asked: SearchRequest) -> str:
    """Why the space itself has its number of trials; empty where that is asked for."""
    if not asked.space.domains:
        return "each site is held out once"
    return "a grid is gone through whole" if asked.options.searcher == "grid" else ""


def _check_judged(asked: SearchRequest) -> None:
    config, scheduler = resolve(asked.base), asked.options.scheduler
    if not asked.space.domains:
        raise ConfigError(f"--scheduler {scheduler} would compare one held-out site with another; use fifo")
    if scheduler == "hyperband" and config.evaluate_every > 1:
        raise ConfigError("--scheduler hyperband compares trials in rounds of its own choice; give evaluate_every=1")
    if config.rounds <= config.evaluate_every:
        raise ConfigError(
            f"--scheduler {scheduler} compares trials on their way, and of {config.rounds} rounds with "
            f"evaluate_every={config.evaluate_every} only the last is judged; give evaluate_every=1"
        )


def _check_searcher(asked: SearchRequest) -> None:
    options = asked.options
    if "," in (options.metric or "") and (options.searcher != "optuna" or options.scheduler != "fifo"):
        raise ConfigError(f"--metric {options.metric}: several objectives need --searcher optuna and --scheduler fifo")
    if options.searcher == "random":
        _check_grids(asked.space)
    if options.searcher == "optuna" and any(domain.is_grid() for domain in asked.space.domains.values()):
        raise ConfigError("grid(...) is for --searcher random or grid; Optuna chooses by itself: choice(...)")


def _check_grids(space: Space) -> None:
    of_all = "algorithm" in space.domains and space.domains["algorithm"].is_grid()
    for key, domain in space.domains.items():
        if domain.is_grid() and space.short(key) != key and not of_all:
            raise ConfigError(
                f"{key} is a grid, to be gone through in the trials of one algorithm alone; make algorithm a grid(...) "
                "too, or take choice(...)"
            )


def _check_pbt(asked: SearchRequest) -> None:
    if asked.options.searcher == "optuna":
        raise ConfigError("--scheduler pbt changes the values that Optuna would learn from; use --searcher random")
    for key in asked.space.domains:
        if not key.startswith("algorithm.") or key.startswith("algorithm.finetune"):
            raise ConfigError(f"--scheduler pbt changes keys in the middle of a run, and {key} cannot change there")
    if not asked.space.domains:
        raise ConfigError("--scheduler pbt needs keys to change: --space algorithm.lr=loguniform(1e-4, 1e-1)")


def write_request(out: Path, asked: SearchRequest) -> None:
    held = {
        "schema_version": 1,
        "cwd": asked.cwd or os.getcwd(),
        "base": asked.base,
        "space": {key: distributions.to_text(domain) for key, domain in asked.space.domains.items()},
        "points": [
            {k: list(v) if isinstance(v, tuple) else v for k, v in point.items()} for point in asked.space.points
        ],
        "options": {f.name: getattr(asked.options, f.name) for f in fields(SearchOptions)},
    }
    write_text(out / SEARCH_FILE, yaml.safe_dump(held, sort_keys=False))
    if not (out / "env.json").exists():
        write_json(out / "env.json", describe_environment())


def read_request(path: Path) -> SearchRequest:
    held = load_yaml(path.read_text(encoding="utf-8"), str(path))
    space = {key: distributions.parse_distribution(text, key) for key, text in held["space"].items()}
    found = spaces.from_mapping(space, held["points"])
    return SearchRequest(held["base"], found, build(SearchOptions, held["options"], "search"), held["cwd"])
