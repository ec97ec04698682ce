"""The request of a search: base configuration, space and options, checked without the data, stored in search.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from raysim.config.merge import merge, nested_keys
from raysim.config.resolve import build, resolve
from raysim.config.schema import TrackerName
from raysim.config.yaml_loader import load_yaml
from raysim.core.atomic_io import write_json, write_text
from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.distributed.run_environment import describe_environment
from raysim.reporting.tracked_runs import check_tracker
from raysim.search import distributions
from raysim.search.early_checks import all_keys_fixed, contains_key
from raysim.search.options import OPTUNA_SAMPLERS, SearchOptions, option_name
from raysim.search.optuna_sampler import import_optuna
from raysim.search.random_search import random_trials
from raysim.search.schedulers import SCHEDULERS
from raysim.search.space import Space, from_mapping
from raysim.search.space_validation import check_space
from raysim.storage.run_directory import SEARCH_FILE

REQUEST_KEYS = ("space", "points", "base", "options", "cwd")  # of search.yaml


@dataclass(frozen=True)
class SearchRequest:
    """The search that a user requests: the content of search.yaml."""

    base: Mapping[str, Any]
    space: Space
    options: SearchOptions
    cwd: str = ""  # working directory of the command that made the request: relative paths in `base` start from it

    @property
    def fixed_trial_count_reason(self) -> str:
        """The reason why the space determines the number of trials; empty if the user chooses it."""
        if not self.space.domains:
            return "each site is held out once"
        return "a grid runs every combination once" if self.options.searcher == "grid" else ""

    @property
    def tracker(self) -> TrackerName | None:
        """The experiment tracker: that of the options, otherwise that of the run's keys."""
        return self.options.tracker or self.base.get("tracker")

    @property
    def samples_whole_grid(self) -> bool:
        """Whether the trials are all combinations of the space."""
        return bool(self.fixed_trial_count_reason)

    def listed_trials(self, space: Space, seed: int) -> list[dict[str, Any]]:
        """The values of the trials over `space`, which is the space of the request or that of the held-out sites.

        A random search has fewer than `trials` if the space has fewer configurations, except with a scheduler that
        changes the values of a population.
        """
        if self.samples_whole_grid:
            return space.grid()
        population = SCHEDULERS[self.options.scheduler].transfers_state
        return list(random_trials(space, seed, self.options.trials, repeated=population))

    def trial_count(self, space: Space, seed: int) -> int:
        """The number of trials over `space`."""
        if self.options.searcher in OPTUNA_SAMPLERS and not self.samples_whole_grid:
            return self.options.trials
        return len(self.listed_trials(space, seed))


def build_request(
    space: Space, file_keys: Mapping[str, Any], overrides: Mapping[str, Any], options: Mapping[str, Any]
) -> SearchRequest:
    """The request for a search of `space`. Raises ConfigError for every fault that can be found without the data.

    Keys of the space take precedence over `file_keys`, which are from a config file. `overrides`, which are from the
    command line, take precedence over the space and are not searched.
    """
    space = space.for_algorithm(name) if (name := _algorithm_name(overrides)) else space
    overrides, conditional = space.split_conditional(overrides)
    space = space.override(conditional)
    ordered = sorted(space.domains, key=lambda key: key != "algorithm")  # conditional keys depend on it
    searched = {
        key: space.domains[key]
        for key in ordered
        if key in conditional or not contains_key(overrides, space.run_key(key))
    }
    if space.domains and not searched:
        raise all_keys_fixed(map(space.run_key, ordered), overrides)
    base = dict(file_keys)
    for key, value in space.fixed.items():
        base = merge(base, nested_keys(key, list(value) if isinstance(value, tuple) else value))
    base = merge(base, overrides)
    points = [{key: value for key, value in point.items() if key in searched} for point in space.points]
    space = Space(searched, {}, tuple(point for point in points if point))
    request = SearchRequest(base, space, build_options(options))
    resolve(base)
    check_space(space, base)
    check_options(request)
    check_trial_count(request, options)
    return request


def build_options(options: Mapping[str, Any]) -> SearchOptions:
    """The options of a search. Raises ConfigError, with the name that the command line uses, for an invalid value."""
    try:
        built: SearchOptions = build(SearchOptions, options, "")
    except ConfigError as error:
        name, separator, rest = str(error).partition("=")
        raise ConfigError(f"{option_name(name)}{separator}{rest}") from error
    return built


def _algorithm_name(overrides: Mapping[str, Any]) -> str | None:
    given = overrides.get("algorithm")
    name = given.get("name") if isinstance(given, Mapping) else given
    return name if isinstance(name, str) else None


def check_options(request: SearchRequest) -> None:
    """Raises ConfigError for options that contradict each other, the space or the installation."""
    space, options = request.space, request.options
    check_tracker(request.tracker)
    _check_searcher(request)
    if not space.domains and options.holdout is None:
        raise ConfigError(
            "no key is searched: name a space (raysim list spaces), or use --space 'algorithm.lr=loguniform(1e-4,1e-1)'"
        )
    if not space.domains and options.stop == "auto":
        raise ConfigError(
            f"--stop auto: {request.fixed_trial_count_reason}, so the number of trials is fixed; remove --stop auto"
        )
    if "seed" in space.domains and options.seeds > 1:
        raise ConfigError(
            "--seeds repeats every trial with other seeds, but the space also searches seed; keep one of them"
        )
    if options.scheduler != "fifo":
        _check_scheduler(request)


def check_trial_count(request: SearchRequest, options: Mapping[str, Any]) -> None:
    """Raises ConfigError if `options` contain a number of trials although the space determines it."""
    if "trials" in options and (reason := request.fixed_trial_count_reason):
        raise ConfigError(f"--trials {options['trials']}: {reason}, so the number is fixed; remove --trials")


def _check_scheduler(request: SearchRequest) -> None:
    config, scheduler = resolve(request.base), request.options.scheduler
    if "rounds" in request.space.domains:
        raise ConfigError(
            f"rounds is searched, but --scheduler {scheduler} compares trials round by round; use --scheduler fifo"
        )
    if SCHEDULERS[scheduler].waits_for_all and request.options.max_concurrent:
        raise ConfigError(
            f"--max-concurrent: the trials of --scheduler {scheduler} wait for one another; remove "
            "--max-concurrent, or use --scheduler asha"
        )
    if SCHEDULERS[scheduler].waits_for_all and config.early_stopping is not None:
        raise ConfigError(
            f"early_stopping: the trials of --scheduler {scheduler} wait for one another, so none may end before the "
            "others; remove early_stopping, or use --scheduler asha"
        )
    if not request.space.domains:
        raise ConfigError(
            f"--scheduler {scheduler} would compare trials with different held-out sites; use --scheduler fifo"
        )
    if SCHEDULERS[scheduler].compares_any_round and config.evaluate_every > 1:
        raise ConfigError(
            f"--scheduler {scheduler} may compare trials in any round, so every round needs an evaluation; set "
            "evaluate_every=1"
        )
    if config.rounds <= config.evaluate_every:
        cure = "set rounds=2 or more" if config.rounds == 1 else "set evaluate_every=1"
        raise ConfigError(
            f"--scheduler {scheduler} compares trials before they end, but with rounds={config.rounds} and "
            f"evaluate_every={config.evaluate_every} only the last round is evaluated; {cure}"
        )
    if SCHEDULERS[scheduler].transfers_state:
        _check_pbt(request)


def _check_pbt(request: SearchRequest) -> None:
    if request.options.searcher in OPTUNA_SAMPLERS:
        raise ConfigError("--scheduler pbt changes the values that Optuna would learn from; use --searcher random")
    for key in request.space.domains:
        if not key.startswith("algorithm.") or key.startswith("algorithm.finetune"):
            raise ConfigError(
                f"--scheduler pbt changes keys during a run, but {key} cannot change during a run; remove it from the "
                "space, or use another --scheduler"
            )


def _check_searcher(request: SearchRequest) -> None:
    options, several = request.options, "," in (request.options.metric or "")
    if several and (options.searcher not in ("tpe", "gp", "nsgaii") or options.scheduler != "fifo"):
        raise ConfigError(
            f"--metric {options.metric}: several objectives need --searcher tpe, gp or nsgaii, and --scheduler fifo"
        )
    if several and options.stop == "auto":
        raise ConfigError(f"--stop auto compares one objective, not {options.metric}; remove it, or give one metric")
    if options.warm_start is not None:
        _check_warm_start(request, options.warm_start)
    if options.searcher == "random":
        _check_grids(request.space)
    if options.searcher in OPTUNA_SAMPLERS:
        _check_optuna(options.searcher, request.space)


def _check_optuna(name: str, space: Space) -> None:
    import_optuna()
    if name == "cmaes" and find_spec("cmaes") is None:
        raise ConfigError("--searcher cmaes needs the package cmaes: pip install cmaes")
    if any(domain.is_grid() for domain in space.domains.values()):
        raise ConfigError(f"grid(...) needs --searcher random or grid; with --searcher {name} use choice(...)")


def _check_warm_start(request: SearchRequest, directory: str) -> None:
    """Raises ConfigError if the sampler cannot learn from the search in `directory`: other keys or ranges."""
    if request.options.searcher not in OPTUNA_SAMPLERS:
        raise ConfigError(
            f"--from {directory}: --searcher {request.options.searcher} does not learn from trials; use --searcher tpe"
        )
    path = Path(directory) / SEARCH_FILE
    if not path.is_file():
        raise ConfigError(
            f"--from {directory} is not the directory of a search: it has no {SEARCH_FILE}; give one, such as "
            "runs/tune-001"
        )
    earlier, space = read_request(path).space, request.space
    for key in dict.fromkeys([*space.domains, *earlier.domains]):
        here, there = (each.text(key) if key in each.domains else "not searched" for each in (space, earlier))
        if here != there:
            raise ConfigError(
                f"--from {directory}: {key} is {there} in that search and {here} in this one; search the same keys and "
                "ranges, or remove --from"
            )


def _check_grids(space: Space) -> None:
    of_all = "algorithm" in space.domains and space.domains["algorithm"].is_grid()
    for key, domain in space.domains.items():
        if domain.is_grid() and space.run_key(key) != key and not of_all:
            raise ConfigError(
                f"{key} is a grid of one algorithm, but algorithm is not a grid; use --space "
                f"'algorithm=grid(...)', or --space '{key}=choice(...)'"
            )


def write_request(out: Path, request: SearchRequest) -> None:
    """Write search.yaml, and at the first start env.json, into the directory of the search."""
    points = [{k: list(v) if isinstance(v, tuple) else v for k, v in point.items()} for point in request.space.points]
    content = {
        "schema_version": 1,
        "cwd": request.cwd or os.getcwd(),
        "base": request.base,
        "space": {key: request.space.text(key) for key in request.space.domains},
        "points": points,
        "options": asdict(request.options),
    }
    write_text(out / SEARCH_FILE, yaml.safe_dump(content, sort_keys=False))
    if not (out / "env.json").exists():
        write_json(out / "env.json", describe_environment())


def read_request(path: Path) -> SearchRequest:
    """The request in search.yaml. Raises ConfigError for a file that raysim has not written."""
    content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    if missing := [key for key in REQUEST_KEYS if not isinstance(content, dict) or key not in content]:
        raise ConfigError(f"{path} has no {join_names(missing)}; expected the request of a search; restore the file")
    domains = {key: distributions.parse_distribution(text, key) for key, text in content["space"].items()}
    space = from_mapping(domains, content["points"])
    return SearchRequest(content["base"], space, build_options(content["options"]), content["cwd"])
